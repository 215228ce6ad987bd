//! Checkpoints with random weights in a published shape, for measurements of whole programs.
//!
//! The folder is a Hugging Face checkpoint: this project and transformers load it. Weights are
//! random numbers and so is the text they generate, but a program does the same work on them.

mod gguf;
mod random;
mod shards;
mod tensors;
mod tokenizer;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sparq_measure::shape::CacheType;
use sparq_models::DecoderConfig;
use sparq_output::files::OutputFolder;

pub use gguf::GgufType;
use random::Normal;
use shards::{Shard, ShardSize};

/// A checkpoint to make.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Its `config.json`, without the type of the weights.
    pub config: Value,
    /// The type of the weights.
    pub dtype: CacheType,
    /// The seed of the weights. Equal recipes give equal files on every machine.
    pub seed: u64,
    /// The lengths of the prompts to write, in tokens.
    pub prompts: Vec<usize>,
    /// The most bytes of weights in a file. A larger tensor has a file of its own.
    pub shard_bytes: u64,
}

/// The size of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The number of weights.
    pub parameters: u64,
    /// Bytes of all weights.
    pub bytes: u64,
    /// The number of files with weights.
    pub shards: usize,
}

impl Recipe {
    /// The largest file of weights that [`Self::shard_bytes`] usually allows. Every thread writes
    /// one file at a time, so a large model needs more files than a machine has cores.
    pub const SHARD_BYTES: u64 = 1 << 30;

    /// Bytes of all weights.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub fn weight_bytes(&self) -> Result<u64> {
        let tensors = tensors::of(&self.decoder()?);
        let elements = tensors.iter().map(|tensor| tensor.elements() as u64);
        Ok(elements.sum::<u64>() * self.dtype.bytes() as u64)
    }

    fn decoder(&self) -> Result<DecoderConfig> {
        Ok(DecoderConfig::from_json(
            &self.config,
            Path::new("config.json"),
        )?)
    }

    /// Writes the model to a new GGUF file, with matrices of the given type, and no prompts. Passes
    /// the bytes of weights written since the last call to `progress`. Returns the bytes of all
    /// weights.
    ///
    /// # Errors
    /// If the configuration is invalid or not that of a Llama model, or if the file exists or
    /// cannot be written.
    pub fn write_gguf(&self, path: &Path, kind: GgufType, progress: &dyn Fn(u64)) -> Result<u64> {
        gguf::write(self, kind, path, progress)
    }

    /// Writes the checkpoint to a new or empty folder, which gets its name when it is complete.
    /// Passes the bytes of weights written since the last call to `progress`, on several threads.
    ///
    /// The files are not synced to the disk: a checkpoint lost with the power can be made again.
    ///
    /// # Errors
    /// If the configuration is invalid, if a prompt does not fit into the context, or if the
    /// folder exists and is not empty or cannot be written.
    pub fn write(&self, path: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<Written> {
        let config = self.decoder()?;
        let context = config.max_position_embeddings;
        if let Some(prompt) = self.prompts.iter().find(|&&prompt| prompt > context) {
            bail!("--prompts: expected at most {context}, the model's context, found {prompt}");
        }
        let folder = OutputFolder::create(path)?;
        let tensors = tensors::of(&config);
        let size = ShardSize {
            element_bytes: self.dtype.bytes(),
            limit: self.shard_bytes,
        };
        let shards = shards::plan(&tensors, size);
        self.write_shards(folder.path(), &shards, progress)?;
        let written = Written {
            parameters: tensors.iter().map(|tensor| tensor.elements() as u64).sum(),
            bytes: shards.iter().map(Shard::bytes).sum(),
            shards: shards.len(),
        };
        for (name, contents) in self.text_files(&config, &shards, &written) {
            let file = folder.path().join(&name);
            fs::write(&file, contents).with_context(|| file.display().to_string())?;
        }
        folder.finish()?;
        Ok(written)
    }

    /// Writes the weights on all cores, each core one file at a time.
    fn write_shards(
        &self,
        folder: &Path,
        shards: &[Shard<'_>],
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let normal = Normal::new(self.dtype, self.seed);
        let threads = sparq_measure::host::cores().min(shards.len());
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(shard) = shards.get(index) else {
                    return Ok(());
                };
                let path = folder.join(&shard.name);
                let written = shard.write(&path, self.dtype, &normal, progress);
                written.with_context(|| path.display().to_string())?;
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let mut joined = workers.into_iter().map(|worker| worker.join());
            joined.try_for_each(|result| result.expect("writing numbers does not panic"))
        })
    }

    /// The names and contents of all files besides the weights.
    fn text_files(
        &self,
        config: &DecoderConfig,
        shards: &[Shard<'_>],
        written: &Written,
    ) -> Vec<(String, String)> {
        let dtype = match self.dtype {
            CacheType::F32 => "float32",
            CacheType::F16 => "float16",
            CacheType::Bf16 => "bfloat16",
        };
        let mut described = self.config.clone();
        described["torch_dtype"] = json!(dtype);
        let class = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
        let mut files = vec![
            ("config.json".to_owned(), format!("{described:#}\n")),
            ("tokenizer_config.json".into(), format!("{class:#}\n")),
            (
                "tokenizer.json".into(),
                tokenizer::json(config.vocab_size).to_string(),
            ),
        ];
        if shards.len() > 1 {
            let index = shards::index(shards, written.bytes);
            files.push((shards::INDEX.into(), format!("{index:#}\n")));
        }
        for &tokens in &self.prompts {
            let text = tokenizer::prompt(tokens, self.seed);
            files.push((format!("p{tokens}.txt"), text));
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use burn::tensor::{FloatDType, Int, Tensor};
    use clap::ValueEnum;
    use sparq::Method;
    use sparq_measure::model::ModelName;
    use sparq_models::checkpoint::Checkpoint;
    use sparq_models::text::TextTokenizer;
    use sparq_models::{CausalLm, Decoder};

    use super::*;

    /// The configuration of a model with the names and options of its family, but small.
    fn small(model: ModelName) -> Value {
        let mut config = model.config_json();
        let sizes = [
            ("hidden_size", 32),
            ("intermediate_size", 48),
            ("num_hidden_layers", 2),
            ("num_attention_heads", 4),
            ("vocab_size", 300),
            ("head_dim", 16),
            ("max_position_embeddings", 64),
        ];
        for (key, size) in sizes {
            config[key] = json!(size);
        }
        if config["num_key_value_heads"].as_u64() > Some(1) {
            config["num_key_value_heads"] = json!(2);
        }
        config
    }

    fn recipe(config: Value) -> Recipe {
        Recipe {
            config,
            dtype: CacheType::F32,
            seed: 7,
            prompts: vec![20],
            shard_bytes: 10_000,
        }
    }

    #[test]
    fn made_models_of_all_families_load() {
        let device = sparq_device::available()[0].open();
        for &model in ModelName::value_variants() {
            let parent = tempfile::tempdir().unwrap();
            let path = parent.path().join(model.name());
            let done = AtomicU64::new(0);
            let count = |bytes| {
                done.fetch_add(bytes, Ordering::Relaxed);
            };
            let written = recipe(small(model)).write(&path, &count).unwrap();
            assert_eq!(written.bytes, 4 * written.parameters);
            assert_eq!(recipe(small(model)).weight_bytes().unwrap(), written.bytes);
            assert_eq!(done.into_inner(), written.bytes);
            assert!(written.shards > 2);
            let checkpoint = Checkpoint::open(&path).unwrap();
            assert_eq!(checkpoint.num_params(), written.parameters);
            let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
            let loaded = Decoder::load(&checkpoint, &config, FloatDType::F32, &device);
            let loaded = loaded.unwrap_or_else(|error| panic!("{model:?}: {error}"));
            let mut cache = loaded
                .new_cache(1, 8, FloatDType::F32, &Method::DENSE)
                .unwrap();
            let tokens = Tensor::<2, Int>::from_ints([[1, 2, 3]], &device);
            let logits = loaded.prefill(tokens, &mut cache, 1).unwrap();
            let logits: Vec<f32> = logits.into_data().try_to_vec().unwrap();
            assert!(logits.iter().all(|logit| logit.is_finite()));
            assert!(logits.iter().any(|&logit| logit != logits[0]), "{model:?}");
        }
    }

    #[test]
    fn made_prompts_have_a_token_per_byte() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("model");
        recipe(small(ModelName::Tiny))
            .write(&path, &|_| ())
            .unwrap();
        let tokenizer = TextTokenizer::from_folder(&path).unwrap();
        assert_eq!(
            (tokenizer.vocab_size(), tokenizer.eos_ids()),
            (300, &[][..])
        );
        let text = fs::read_to_string(path.join("p20.txt")).unwrap();
        let tokens = tokenizer.encode(&text, true).unwrap();
        assert_eq!(tokens.len(), 20);
        assert_eq!(tokenizer.decode(&tokens, true).unwrap(), text);
        let umlaut = tokenizer.encode("\u{e4}\n", true).unwrap();
        assert_eq!(umlaut.len(), 3);
        assert_eq!(tokenizer.decode(&umlaut, true).unwrap(), "\u{e4}\n");
        assert_eq!(tokenizer.decode(&[299], true).unwrap(), " 299");
    }

    #[test]
    fn made_files_depend_on_the_recipe_alone() {
        let parent = tempfile::tempdir().unwrap();
        let weights = |name: &str, recipe: Recipe| {
            let path = parent.path().join(name);
            recipe.write(&path, &|_| ()).unwrap();
            fs::read(path.join("model.safetensors")).unwrap()
        };
        let one = |seed| Recipe {
            seed,
            shard_bytes: u64::MAX,
            ..recipe(small(ModelName::Tiny))
        };
        let first = weights("a", one(7));
        assert_eq!(first, weights("b", one(7)));
        assert_ne!(first, weights("c", one(8)));
        assert!(!parent.path().join("a").join(shards::INDEX).exists());
    }

    #[test]
    fn made_folders_replace_nothing() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("mine"), "").unwrap();
        let refused = recipe(small(ModelName::Tiny)).write(parent.path(), &|_| ());
        let error = format!("{:#}", refused.unwrap_err());
        assert!(error.contains("new or empty folder"), "{error}");
        let long = Recipe {
            prompts: vec![65],
            ..recipe(small(ModelName::Tiny))
        };
        let path = parent.path().join("model");
        let error = format!("{:#}", long.write(&path, &|_| ()).unwrap_err());
        assert!(error.contains("64") && error.contains("65"), "{error}");
        assert!(!path.exists());
    }
}
