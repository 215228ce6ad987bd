//! The model families, one file each: how a `config.json` becomes a
//! [`DecoderConfig`](crate::DecoderConfig).

mod architecture;

use crate::config::{ConfigError, Fields};
use crate::decoder::DecoderConfig;

/// The entry of a family in the table below.
struct Family {
    /// Its name in `architectures`.
    architecture: &'static str,
    /// Its name in `model_type`.
    model_type: &'static str,
    /// Reads a `config.json`.
    read: fn(Fields<'_>) -> Result<DecoderConfig, ConfigError>,
}

/// Declares the table of families. A line has the variant, the file and its documentation.
macro_rules! families {
    ($($name:ident: $file:ident, $about:literal;)*) => {
        $(mod $file;)*

        /// A supported model family.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Architecture {
            $(#[doc = $about] $name,)*
        }

        impl Architecture {
            /// Every family.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            fn family(self) -> &'static Family {
                match self {
                    $(Self::$name => &$file::FAMILY,)*
                }
            }
        }
    };
}

families! {
    Llama: llama, "Llama 1 to 3.x and every other `LlamaForCausalLM`.";
    Mistral: mistral, "Mistral 7B and every other `MistralForCausalLM`.";
    Gemma: gemma, "The first Gemma: `GemmaForCausalLM`.";
    GptNeox: gpt_neox, "GPT-NeoX and Pythia: `GPTNeoXForCausalLM`.";
    Qwen2: qwen2, "Qwen 2 and 2.5: `Qwen2ForCausalLM`.";
    Qwen3: qwen3, "Qwen 3 without experts: `Qwen3ForCausalLM`.";
    Qwen3Moe: qwen3_moe, "Qwen 3 with experts: `Qwen3MoeForCausalLM`.";
    Gemma2: gemma2, "Gemma 2: `Gemma2ForCausalLM`.";
    Gemma3: gemma3, "Gemma 3 for text: `Gemma3ForCausalLM`.";
    Phi3: phi3, "Phi 3 and 4: `Phi3ForCausalLM`.";
    SmolLm3: smollm3, "SmolLM3: `SmolLM3ForCausalLM`.";
    Olmo2: olmo2, "OLMo 2: `Olmo2ForCausalLM`.";
    Granite: granite, "Granite 3 and later without experts: `GraniteForCausalLM`.";
    Mixtral: mixtral, "Mixtral: `MixtralForCausalLM`.";
}
