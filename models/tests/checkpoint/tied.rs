//! Output matrices of models whose configuration ties them to the embedding table.

use std::fs;

use burn::tensor::{Device, FloatDType};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use sparq_models::checkpoint::Checkpoint;
use sparq_models::{Decoder, DecoderConfig};

use crate::support::{fixture, safetensors};

const EMBED: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Writes the fixture `llama3` as a tied model, with the matrices that `keep` returns for the
/// embedding table and the output matrix.
fn tied(keep: impl Fn(&[u8], &[u8]) -> [Option<Vec<u8>>; 2]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(fixture("llama3").join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let matrix = |name| stored.tensor(name).unwrap();
    let (embed, head) = (matrix(EMBED), matrix(HEAD));
    let mut tensors: Vec<(&str, Dtype, &[usize], Vec<u8>)> = Vec::new();
    for (name, bytes) in [EMBED, HEAD]
        .into_iter()
        .zip(keep(embed.data(), head.data()))
    {
        tensors.extend(bytes.map(|bytes| (name, Dtype::F32, embed.shape(), bytes)));
    }
    let others = stored.names();
    let others: Vec<_> = others
        .into_iter()
        .filter(|name| ![EMBED, HEAD].contains(name))
        .map(|name| (name, stored.tensor(name).unwrap()))
        .collect();
    for (name, view) in &others {
        tensors.push((*name, Dtype::F32, view.shape(), view.data().to_vec()));
    }
    fs::write(
        folder.path().join("model.safetensors"),
        safetensors(&tensors),
    )
    .unwrap();
    let config = fs::read(fixture("llama3").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["tie_word_embeddings"] = true.into();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

fn open(folder: &tempfile::TempDir) -> (Checkpoint, DecoderConfig) {
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let config = DecoderConfig::from_checkpoint(&checkpoint).unwrap();
    Decoder::load(&checkpoint, &config, FloatDType::F32, &Device::flex()).unwrap();
    assert_eq!(checkpoint.unused().count(), 0);
    (checkpoint, config)
}

#[test]
fn other_output_matrix_of_a_tied_model_is_used() {
    let folder = tied(|embed, head| [Some(embed.to_vec()), Some(head.to_vec())]);
    let (checkpoint, config) = open(&folder);
    assert!(!config.tie_word_embeddings);
    // Weights of zeros, for a check of the shapes, keep the decision.
    let config = DecoderConfig::from_checkpoint(&checkpoint.blank().unwrap()).unwrap();
    assert!(!config.tie_word_embeddings);
}

#[test]
fn last_byte_of_the_output_matrix_decides() {
    let changed = |embed: &[u8], place: usize| {
        let mut head = embed.to_vec();
        head[place] ^= 1;
        [Some(embed.to_vec()), Some(head)]
    };
    let folder = tied(|embed, _| changed(embed, embed.len() - 4));
    assert!(!open(&folder).1.tie_word_embeddings);
    let folder = tied(|embed, _| [Some(embed.to_vec()), Some(embed.to_vec())]);
    assert!(open(&folder).1.tie_word_embeddings);
}

#[test]
fn tied_model_may_have_the_output_matrix_only() {
    for keep in [0, 1] {
        let folder = tied(|_, head| {
            let mut kept = [None, None];
            kept[keep] = Some(head.to_vec());
            kept
        });
        let (_, config) = open(&folder);
        assert!(config.tie_word_embeddings);
        assert_eq!(format!("{}.weight", config.keys.embed), [EMBED, HEAD][keep]);
    }
}
