//! Matrix products of a warpgroup with `wgmma`, on tiles that bulk copies bring to shared memory.
//!
//! Four planes multiply 64 rows of A by up to 256 columns of B. Both lie in shared memory, in rows
//! of [`WIDTH`] features whose 16-byte chunks are swizzled: chunk c of row r is in place
//! c ^ (r % 8). Each of 64 rows and columns is a row of its tile.
//!
//! Lane l of plane p holds rows 16 p + l / 4 and 8 further on of the result, and of every eight
//! columns numbers 2 (l % 4) and its neighbour: first both of the upper row, then both of the
//! lower.

use burn::tensor::DType;
use cubecl::prelude::*;

/// Units of a plane.
pub(crate) const PLANE: usize = 32;
/// Units of a warpgroup.
pub(crate) const UNITS: usize = 128;
/// Rows of A and of the result.
pub(crate) const ROWS: usize = 64;
/// Features of a row of a tile: 128 bytes.
pub(crate) const WIDTH: usize = 64;
/// Bytes of eight rows of a tile, the period of the swizzle. Tiles begin at multiples of it.
pub(crate) const ALIGNMENT: usize = 1024;

/// Bytes of a row of a tile.
const ROW_BYTES: usize = 128;
/// Features of one product.
const DEPTH: usize = 16;
/// The bytes that descriptors count in.
const UNIT_BYTES: usize = 16;
/// The upper half of a descriptor: tiles are swizzled in rows of 128 bytes, and eight rows begin
/// 1024 bytes after the eight before them.
const LAYOUT: u64 = 1 << 62 | ((ALIGNMENT / UNIT_BYTES) as u64) << 32;

/// Returns the number of this unit in its plane, whose size the compiler does not know otherwise.
#[cube]
pub(crate) fn lane() -> u32 {
    UNIT_POS % comptime!(PLANE as u32)
}

/// Returns the number of this unit's plane.
#[cube]
pub(crate) fn plane() -> usize {
    UNIT_POS as usize / PLANE
}

/// Returns the number of this unit's warpgroup.
#[cube]
pub(crate) fn warpgroup() -> u32 {
    UNIT_POS / comptime!(UNITS as u32)
}

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
    u64::cast_from(address / comptime!(UNIT_BYTES as u32)) | comptime!(LAYOUT)
}

/// Returns the descriptor of a tile of B whose rows are rows of B: `rows` rows of [`WIDTH`]
/// columns, and after them the same rows of the next columns.
#[cube]
pub(crate) fn descriptor_of_rows(address: u32, #[comptime] rows: usize) -> u64 {
    descriptor(address) | comptime!(((bytes_of(rows) / UNIT_BYTES) as u64) << 16)
}

/// Returns the name of a type in PTX, if `wgmma` multiplies it.
pub(crate) fn ptx_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F16 => Some("f16"),
        DType::BF16 => Some("bf16"),
        _ => None,
    }
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
pub(crate) fn add_products<S: Size>(
    before: Vector<f32, S>,
    a: u64,
    b: u64,
    #[comptime] element: &'static str,
) -> Vector<f32, S> {
    let size = S::value().comptime();
    let before = value_of::<Vector<f32, S>>(before);
    let copies = comptime!(copies(size));
    let products = comptime!(products(size, element, WIDTH, [0, 0], true));
    let sums: Vector<f32, S>;
    gpu_asm!(
        "{{",
        ".reg .b64 left, right, a, b;",
        "// {before} becomes {sums}.",
        "{copies}",
        "mov.b64 left, {a};",
        "mov.b64 right, {b};",
        "wgmma.fence.sync.aligned;",
        "{products}",
        "wgmma.commit_group.sync.aligned;",
        "}}",
        sums = out(_) sums, before = in(_) before, a = in(_) a, b = in(_) b,
    );
    sums
}

/// Begins to multiply A and B, which have `features` features. Those of A lie in blocks of
/// [`WIDTH`] for `blocks[0]` rows, and those of B for `blocks[1]`. See [`add_products`].
#[cube]
pub(crate) fn products_of<S: Size>(
    a: u64,
    b: u64,
    #[comptime] features: usize,
    #[comptime] blocks: [usize; 2],
    #[comptime] element: &'static str,
) -> Vector<f32, S> {
    let size = S::value().comptime();
    let products = comptime!(products(size, element, features, blocks, false));
    let sums: Vector<f32, S>;
    gpu_asm!(
        "{{",
        ".reg .b64 left, right, a, b;",
        "// The result is {sums}.",
        "mov.b64 left, {a};",
        "mov.b64 right, {b};",
        "wgmma.fence.sync.aligned;",
        "{products}",
        "wgmma.commit_group.sync.aligned;",
        "}}",
        sums = out(_) sums, a = in(_) a, b = in(_) b,
    );
    sums
}

/// Begins to add the products of A, which lies in registers, and the rows of B. Register
/// 4 i + j of A is number j of features 16 i to 16 i + 16 in the layout of `mma.m16n8k16`. See
/// [`add_products`] and [`descriptor_of_rows`].
#[cube]
pub(crate) fn add_products_of_registers<S: Size, A: Size>(
    before: Vector<f32, S>,
    a: Vector<u32, A>,
    b: u64,
    #[comptime] element: &'static str,
) -> Vector<f32, S> {
    let (size, registers) = (S::value().comptime(), A::value().comptime());
    let before = value_of::<Vector<f32, S>>(before);
    let a = value_of::<Vector<u32, A>>(a);
    let copies = comptime!(copies(size));
    let products = comptime!(products_of_registers(size, registers, element));
    let sums: Vector<f32, S>;
    gpu_asm!(
        "{{",
        ".reg .b64 right, b;",
        "// {before} becomes {sums}. A is {a}.",
        "{copies}",
        "mov.b64 right, {b};",
        "wgmma.fence.sync.aligned;",
        "{products}",
        "wgmma.commit_group.sync.aligned;",
        "}}",
        sums = out(_) sums, before = in(_) before, a = in(_) a, b = in(_) b,
    );
    sums
}

/// Waits until all products except those begun last have read their tiles.
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
pub(crate) fn value_of<T: CubePrimitive>(variable: T) -> T {
    intrinsic!(|scope| variable.read_value(scope).into())
}

/// Returns PTX that copies the operand after the first, of `size` registers each, to the first.
fn copies(size: usize) -> String {
    let copy = |i| format!("mov.f32 %{i}, %{};", size + i);
    (0..size).map(copy).collect::<Vec<_>>().join("\n")
}

/// Returns PTX that multiplies the tiles at `left` and `right`: the sums are the first operand of
/// `size` registers, and are added to what it holds if `adds`.
fn products(size: usize, element: &str, features: usize, blocks: [usize; 2], adds: bool) -> String {
    let product = |step: usize| {
        let [a, b] = blocks.map(|rows| {
            let within = step * DEPTH % WIDTH * ROW_BYTES / WIDTH;
            (step * DEPTH / WIDTH * bytes_of(rows) + within) / UNIT_BYTES
        });
        let instruction = instruction(size, element);
        let keeps = u8::from(adds || step > 0);
        format!(
            "add.s64 a, left, {a};\nadd.s64 b, right, {b};\n\
             {instruction}, a, b, {keeps}, 1, 1, 0, 0;"
        )
    };
    let products: Vec<_> = (0..features / DEPTH).map(product).collect();
    products.join("\n")
}

/// Returns PTX that multiplies the third operand, of `registers` registers, by the rows at `right`
/// and adds to the first, of `size` registers.
fn products_of_registers(size: usize, registers: usize, element: &str) -> String {
    let product = |step: usize| {
        let first = 2 * size + 4 * step;
        let a: Vec<_> = (first..first + 4).map(|i| format!("%{i}")).collect();
        let a = a.join(", ");
        let b = step * bytes_of(DEPTH) / UNIT_BYTES;
        let instruction = instruction(size, element);
        format!("add.s64 b, right, {b};\n{instruction}, {{{a}}}, b, 1, 1, 1, 1;")
    };
    let products: Vec<_> = (0..registers / 4).map(product).collect();
    products.join("\n")
}

/// Returns the instruction with its first operand, the sums in `size` registers.
fn instruction(size: usize, element: &str) -> String {
    let sums: Vec<_> = (0..size).map(|i| format!("%{i}")).collect();
    let (sums, columns) = (sums.join(", "), size * UNITS / ROWS);
    let shape = format!("m{ROWS}n{columns}k{DEPTH}");
    format!("wgmma.mma_async.sync.aligned.{shape}.f32.{element}.{element} {{{sums}}}")
}
