//! Blocks of ggml that products read as they are; [`sparq::ops::blocks`] has their layouts.

use sparq::ops::BlockFormat;

use super::Format;

/// Defines the format `$name`, with its value of `sparq convert --dtype` and its number in GGUF
/// files.
macro_rules! packed {
    ($($name:ident: $flag:literal, $gguf:literal;)*) => {
        $(pub(super) const $name: Format = {
            const BLOCKS: BlockFormat = BlockFormat::$name;
            Format::packed($flag, $gguf, BLOCKS, |bytes, weights| {
                BLOCKS.dequantize(bytes, weights);
            })
        };)*
    };
}

packed! {
    Q4_0: "q4_0", 2;
    Q4_1: "q4_1", 3;
    Q5_0: "q5_0", 6;
    Q5_1: "q5_1", 7;
    Q8_0: "q8_0", 8;
    Q4_K: "q4_k", 12;
    Q5_K: "q5_k", 13;
    Q6_K: "q6_k", 14;
}
