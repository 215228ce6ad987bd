//! Malformed and truncated GGUF files give errors that name the file. They cause no panic, and no
//! allocation of the sizes they claim.

use sparq_models::checkpoint::{Checkpoint, CheckpointError};
use sparq_tests::assert_contains;

use super::write;
use super::writer::{GgufFile, Meta};

fn error(bytes: &[u8]) -> String {
    let (_folder, path) = write(bytes);
    let error = match Checkpoint::open(&path) {
        Err(error) => error,
        Ok(_) => panic!("was opened"),
    };
    let message = error.to_string();
    assert!(message.contains("model.gguf"), "{message}");
    assert!(matches!(error, CheckpointError::Gguf { .. }), "{message}");
    message
}

fn changed(change: impl FnOnce(&mut GgufFile)) -> String {
    let mut file = GgufFile::llama();
    change(&mut file);
    error(&file.bytes())
}

#[test]
fn truncated_files_are_refused() {
    let bytes = GgufFile::llama().bytes();
    for length in 0..bytes.len() {
        error(&bytes[..length]);
    }
}

#[test]
fn flipped_header_bytes_open_or_are_refused() {
    let bytes = GgufFile::llama().bytes();
    for place in 0..bytes.len() - 4 * 128 {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[place] ^= flip;
            let (_folder, path) = write(&bytes);
            if let Ok(checkpoint) = Checkpoint::open(&path) {
                assert!(checkpoint.num_bytes() <= bytes.len() as u64, "byte {place}");
            }
        }
    }
}

#[test]
fn sizes_are_checked_before_allocation() {
    let with = |place: usize, number: u64| {
        let mut bytes = GgufFile::llama().bytes();
        bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
        error(&bytes)
    };
    // The numbers of tensors and entries, and the length of the first key.
    for place in [8, 16, 24] {
        for number in [1 << 60, u64::MAX] {
            assert_contains(&with(place, number), &["expected"]);
        }
    }
    let message = changed(|file| file.push("a", &[1 << 40, 1 << 40], 0, vec![]));
    assert_contains(&message, &["fewer than 2^63 bytes"]);
    let message = changed(|file| file.push("a", &[1 << 40], 0, vec![]));
    let expected = "tensor \"a\": expected 4398046511104 bytes within the file";
    assert_contains(&message, &[expected]);
}

#[test]
fn unsupported_values_list_the_supported_ones() {
    type Change = Box<dyn FnOnce(&mut GgufFile)>;
    let cases: [(&str, Change); 11] = [
        (
            "\"general.architecture\": expected one of llama, qwen2, qwen3, qwen3moe, gemma, gemma2, \
             gemma3, phi3, smollm3, olmo2, granite, found \"mamba\"",
            Box::new(|file| file.set("general.architecture", Meta::Text("mamba".into()))),
        ),
        (
            "\"llama.block_count\": expected a number, found nothing",
            Box::new(|file| file.metadata.retain(|(key, _)| key != "llama.block_count")),
        ),
        (
            "\"llama.rope.freq_base\": expected a number, found null",
            Box::new(|file| file.set("llama.rope.freq_base", Meta::F32(f32::NAN))),
        ),
        (
            "\"split.no\": expected 0 (the first part), found nothing",
            Box::new(|file| file.set("split.count", Meta::U32(3))),
        ),
        (
            "\"llama.embedding_scale\": expected a number, found null",
            Box::new(|file| file.set("llama.embedding_scale", Meta::F32(f32::NAN))),
        ),
        (
            "\"token_embd.weight\": expected a tensor [tokens, width], found none",
            Box::new(|file| file.tensors.clear()),
        ),
        (
            "found ggml's type IQ2_XXS",
            Box::new(|file| file.push("a", &[256], 16, vec![0; 66])),
        ),
        (
            "tensor \"a\": expected rows of whole blocks of Q4_0",
            Box::new(|file| file.push("a", &[2, 16], 2, vec![0; 18])),
        ),
        (
            "\"rope_freqs.weight\": expected positive divisors, found -1",
            Box::new(|file| {
                let divisors = [3.0, -1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0];
                file.floats("rope_freqs.weight", &[8], &divisors);
            }),
        ),
        (
            "\"rope_freqs.weight\": expected F32 [8], found F32 [4]",
            Box::new(|file| file.floats("rope_freqs.weight", &[4], &[1.0; 4])),
        ),
        (
            "\"llama.rope.scaling.type\": expected none, linear or longrope beside divisors",
            Box::new(|file| {
                file.floats("rope_freqs.weight", &[8], &[1.0; 8]);
                file.set("llama.rope.scaling.type", Meta::text("yarn"));
            }),
        ),
    ];
    for (expected, change) in cases {
        assert_contains(&changed(change), &[expected]);
    }
}
