//! Matrix products of a warpgroup with `wgmma`, on tiles that bulk copies bring to shared memory.
//!
//! Four planes multiply 64 rows of A by up to 256 columns of B. Both lie in shared memory, in rows
//! of [`WIDTH`] features whose 16-byte chunks are swizzled: chunk c of row r is in place c ^ (r % 8).
//! Each of 64 rows and columns is a row of its tile.
//!
//! Lane l of plane p holds rows 16 p + l / 4 and 8 further on of the result, and of every eight
//! columns numbers 2 (l % 4) and its neighbour: first both of the upper row, then both of the lower.
//!
//! Barriers count bytes and arrivals. A phase is complete once all have come, and the next begins.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

/// Units of a warpgroup.
pub(crate) const UNITS: usize = 128;
/// Rows of A and of the result.
pub(crate) const ROWS: usize = 64;
/// Features of a row of a tile: 128 bytes.
pub(crate) const WIDTH: usize = 64;
/// Columns of eight rows of a lane that lie side by side.
pub(crate) const COLUMNS: usize = 8;
/// Bytes of eight rows of a tile, the period of the swizzle. Tiles begin at multiples of it.
pub(crate) const ALIGNMENT: usize = 1024;

/// Bytes of a row of a tile.
const ROW_BYTES: usize = 128;
/// Features of one product.
const DEPTH: usize = 16;
/// The upper half of a descriptor: tiles are swizzled in rows of 128 bytes, and eight rows begin
/// 1024 bytes after the eight before them. Bytes are counted in units of 16.
const LAYOUT: u64 = 1 << 62 | (ALIGNMENT as u64 / 16) << 32;

/// Returns the address of a tile in shared memory.
#[cube]
pub(crate) fn address_of<E: CubePrimitive>(tile: &[E]) -> u32 {
    let pointer = tile.as_ptr();
    let address: u32;
    gpu_asm!(
        "{{",
        ".reg .u64 shared;",
        "cvta.to.shared.u64 shared, {pointer};",
        "cvt.u32.u64 {address}, shared;",
        "}}",
        address = out(_) address, pointer = in(_) pointer, options(nomem),
    );
    address
}

/// Returns the descriptor of the tile at an address.
#[cube]
pub(crate) fn descriptor(address: u32) -> u64 {
    u64::cast_from(address / 16u32) | comptime!(LAYOUT)
}

/// Returns the bytes of `rows` rows of a tile.
pub(crate) fn bytes_of(rows: usize) -> usize {
    rows * ROW_BYTES
}

/// Begins to add the products of A and B, a row of each tile, and returns the sums. They are
/// complete, and may be used, after [`complete`]. `element` is the name of the type in PTX.
///
/// An operand of inline PTX is read or written, never both: the sums are copied to other registers,
/// which the compiler then merges with the first.
#[cube]
pub(crate) fn multiply<S: Size>(
    before: Vector<f32, S>,
    a: u64,
    b: u64,
    #[comptime] element: &'static str,
) -> Vector<f32, S> {
    let size = S::value().comptime();
    let before = value_of::<Vector<f32, S>>(before);
    let copies = comptime!(copies(size));
    let products = comptime!(products(size, element));
    let sums: Vector<f32, S>;
    gpu_asm!(
        "{{",
        ".reg .b64 a, b;",
        "// {before} becomes {sums}.",
        "{copies}",
        "mov.b64 a, {a};",
        "mov.b64 b, {b};",
        "wgmma.fence.sync.aligned;",
        "{products}",
        "wgmma.commit_group.sync.aligned;",
        "}}",
        sums = out(_) sums, before = in(_) before, a = in(_) a, b = in(_) b,
    );
    sums
}

/// Waits until all products except those of the last call of [`multiply`] have read their tiles.
#[cube]
pub(crate) fn wait_for_products_before() {
    gpu_asm!("wgmma.wait_group.sync.aligned 1;");
}

/// Waits for all products, and returns the complete sums.
#[cube]
pub(crate) fn complete<S: Size>(before: Vector<f32, S>) -> Vector<f32, S> {
    let size = S::value().comptime();
    let before = value_of::<Vector<f32, S>>(before);
    let copies = comptime!(copies(size));
    let sums: Vector<f32, S>;
    gpu_asm!(
        "// {before} becomes {sums}.",
        "wgmma.wait_group.sync.aligned 0;",
        "{copies}",
        sums = out(_) sums, before = in(_) before,
    );
    sums
}

/// Returns the value of a variable: inline PTX would take its address.
#[cube]
#[allow(unused_variables)]
fn value_of<T: CubePrimitive>(variable: T) -> T {
    intrinsic!(|scope| variable.read_value(scope).into())
}

/// Returns PTX that copies the operand after the first, of `size` registers each, to the first.
fn copies(size: usize) -> String {
    let copy = |i| format!("mov.f32 %{i}, %{};", size + i);
    (0..size).map(copy).collect::<Vec<_>>().join("\n")
}

/// Returns PTX that adds the products of all features of a row to the first operand of `size`
/// registers.
fn products(size: usize, element: &str) -> String {
    let registers: Vec<_> = (0..size).map(|i| format!("%{i}")).collect();
    let (registers, columns) = (registers.join(", "), 2 * size);
    let product = format!(
        "wgmma.mma_async.sync.aligned.m64n{columns}k{DEPTH}.f32.{element}.{element} \
         {{{registers}}}, a, b, 1, 1, 1, 0, 0;"
    );
    // Of a row's 128 bytes, one product takes 32.
    let next = format!("add.s64 a, a, {0};\nadd.s64 b, b, {0};", DEPTH * 2 / 16);
    vec![product; WIDTH / DEPTH].join(&format!("\n{next}\n"))
}

/// Waits until the phase of a barrier that has this parity is complete.
#[cube]
pub(crate) fn wait(barrier: &Barrier, parity: u32) {
    let mut complete = 0u32;
    while complete == 0u32 {
        complete = try_wait(barrier, parity);
    }
}

/// Waits for a limited time; returns 1 if the phase is complete.
#[cube]
fn try_wait(barrier: &Barrier, parity: u32) -> u32 {
    let parity = value_of::<u32>(parity);
    let complete: u32;
    gpu_asm!(
        "{{",
        ".reg .pred p;",
        "mbarrier.try_wait.parity.b64 p, [{barrier}], {parity};",
        "selp.b32 {complete}, 1, 0, p;",
        "}}",
        complete = out(_) complete, barrier = in(_) barrier, parity = in(_) parity,
    );
    complete
}
