//! Blocks of ggml that products read as they are; [`sparq::ops::blocks`] has their layouts.

use sparq::ops::BlockFormat;

use super::Format;

/// Defines the format `$name`, whose number in GGUF files is `$gguf`.
macro_rules! packed {
    ($($name:ident = $gguf:literal;)*) => {
        $(pub(super) const $name: Format = {
            const BLOCKS: BlockFormat = BlockFormat::$name;
            Format::packed($gguf, BLOCKS, |bytes, weights| BLOCKS.dequantize(bytes, weights))
        };)*
    };
}

packed! {
    Q4_0 = 2;
    Q4_1 = 3;
    Q5_0 = 6;
    Q5_1 = 7;
    Q8_0 = 8;
    Q4_K = 12;
    Q5_K = 13;
    Q6_K = 14;
}
