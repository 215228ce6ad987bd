//! The families of models, one file each: how the entries of a `config.json` and the names of its weights make a [`DecoderConfig`](crate::DecoderConfig).

mod architecture;

pub use llama::{Llama, LlamaConfig};

use crate::config::{ConfigError, Fields};
use crate::decoder::DecoderConfig;

/// What a family's file has to say.
struct Family {
    /// Its name in `architectures`.
    architecture: &'static str,
    /// Its name in `model_type`.
    model_type: &'static str,
    /// Reads a `config.json`.
    read: fn(Fields<'_>) -> Result<DecoderConfig, ConfigError>,
}

/// The table of families: a name, its file, and what it is.
macro_rules! families {
    ($($name:ident: $file:ident, $about:literal;)*) => {
        $(mod $file;)*

        /// A family of models that can be loaded.
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
    Llama: llama, "Llama 1 to 3.x, and everything else that is published as a `LlamaForCausalLM`.";
    Mistral: mistral, "Mistral 7B and what is published as a `MistralForCausalLM`, with a sliding window or without.";
    Gemma: gemma, "The first Gemma, `GemmaForCausalLM`.";
    GptNeox: gpt_neox, "GPT-NeoX and Pythia, `GPTNeoXForCausalLM`.";
    Qwen2: qwen2, "Qwen 2 and 2.5, `Qwen2ForCausalLM`.";
    Qwen3: qwen3, "Qwen 3 without experts, `Qwen3ForCausalLM`.";
}
