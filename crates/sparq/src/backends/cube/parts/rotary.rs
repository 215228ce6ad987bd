//! RoPE of components, with angles from a table.

use cubecl::prelude::*;

/// The angles of one position.
#[derive(CubeType)]
pub(crate) struct Angles<'a> {
    /// Cosines and sines of all positions.
    table: &'a Tensor<f32>,
    /// The start of the position's row in it.
    row: usize,
    /// The cache has room for the position. Otherwise the table may have no such row.
    room: bool,
    /// Pairs of components that are rotated.
    #[cube(comptime)]
    pairs: usize,
}

#[cube]
impl<'a> Angles<'a> {
    /// The angles of the token at `position` of a sequence that starts at `start`. A position in
    /// the left padding has the angles of position 0.
    pub fn new(
        table: &'a Tensor<f32>,
        start: usize,
        position: usize,
        room: bool,
        #[comptime] pairs: usize,
    ) -> Angles<'a> {
        Angles::<'a> {
            table,
            row: select(position > start, position - start, 0) * table.stride(0),
            room,
            pairs,
        }
    }
}

/// Returns component `c` of a head, rotated; see [`Rotary`](crate::ops::Rotary). The head begins at
/// `first`.
#[cube]
pub(crate) fn rotate<X: Float>(
    x: &Tensor<X>,
    first: usize,
    stride: usize,
    c: usize,
    angles: &Angles<'_>,
) -> f32 {
    let pairs = comptime!(angles.pairs);
    let mut y = f32::cast_from(x[first + c * stride]);
    if comptime!(pairs > 0) {
        if c < comptime!(2 * pairs).runtime() && angles.room {
            let partner = (c + pairs) % comptime!(2 * pairs).runtime();
            let other = f32::cast_from(x[first + partner * stride]);
            let cos = angles.table[angles.row + c % pairs];
            let sin = angles.table[angles.row + pairs + c % pairs];
            y = y * cos + select(c < pairs, -other, other) * sin;
        }
    }
    y
}

/// Returns the components `c` and `c + pairs` of a head, rotated, for `c` below `pairs`.
#[cube]
pub(crate) fn rotate_pair<X: Float>(
    x: &Tensor<X>,
    first: usize,
    stride: usize,
    c: usize,
    angles: &Angles<'_>,
) -> (f32, f32) {
    let pairs = comptime!(angles.pairs);
    let a = f32::cast_from(x[first + c * stride]);
    let b = f32::cast_from(x[first + (c + pairs) * stride]);
    let mut cos = 1.0f32;
    let mut sin = 0.0f32;
    if angles.room {
        cos = angles.table[angles.row + c];
        sin = angles.table[angles.row + pairs + c];
    }
    (a * cos - b * sin, b * cos + a * sin)
}
