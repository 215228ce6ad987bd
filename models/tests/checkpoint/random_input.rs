//! Random files and configurations: opening and reading them returns a value or an error, and never
//! panics.

use crate::support::{f16_bytes, f32_bytes, safetensors, with_header};
use burn::tensor::{Device, FloatDType};
use proptest::prelude::*;
use safetensors::Dtype;
use sparq_models::{checkpoint::Checkpoint, config::Architecture};

/// Opens the bytes and reads every matrix of the header. Returns how many could be read.
fn open_and_read(weights: Vec<u8>) -> Option<usize> {
    let checkpoint = Checkpoint::from_bytes("fuzz", b"{}", weights).ok()?;
    let mut read = 0;
    for name in checkpoint.names() {
        let shape = checkpoint.entry(name).unwrap().shape;
        let device = Device::default();
        if let &[rows, columns] = shape {
            let tensor = checkpoint.tensor(name, [rows, columns], FloatDType::F32, &device);
            read += usize::from(tensor.is_ok_and(|tensor| tensor.dims() == [rows, columns]));
        }
    }
    Some(read)
}

fn good() -> Vec<u8> {
    safetensors(&[
        ("a", Dtype::F32, &[2, 3], f32_bytes(&[0.5; 6])),
        ("b", Dtype::F16, &[1, 4], f16_bytes(&[0.5; 4])),
    ])
}

#[test]
fn unchanged_file_is_read() {
    assert_eq!(open_and_read(good()), Some(2));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        open_and_read(bytes);
    }

    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = good();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        open_and_read(bytes);
    }

    #[test]
    fn headers_with_any_numbers_never_panic(
        shape in prop::collection::vec(prop_oneof![0..4usize, any::<usize>()], 0..4),
        begin in prop_oneof![0..40usize, any::<usize>()],
        end in prop_oneof![0..40usize, any::<usize>()],
        dtype in prop::sample::select(vec!["F32", "F16", "BF16", "F64", "U8", "F4"]),
        length in 0..40usize,
    ) {
        let header = format!(
            r#"{{"a": {{"dtype": "{dtype}", "shape": {shape:?}, "data_offsets": [{begin}, {end}]}}}}"#
        );
        open_and_read(with_header(&header, &vec![0; length]));
    }

    #[test]
    fn configs_with_any_numbers_never_panic(
        sizes in prop::collection::vec(prop_oneof![0..9u64, any::<u64>()], 8),
        theta in any::<f64>(),
        part in any::<f64>(),
        window in prop_oneof![0..9u64, any::<u64>()],
        act in prop::sample::select(vec!["silu", "gelu", "x", ""]),
    ) {
        let keys = [
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
        ];
        let sizes = keys.iter().zip(sizes).map(|(key, size)| (key.to_string(), size.into()));
        let mut config: serde_json::Map<_, _> = sizes.collect();
        config.insert("rope_theta".into(), theta.into());
        config.insert("rotary_pct".into(), part.into());
        config.insert("sliding_window".into(), window.into());
        config.insert("hidden_act".into(), act.into());
        let config = config.into();
        for architecture in Architecture::ALL {
            if let Ok(config) = architecture.read(&config, "config.json".as_ref()) {
                prop_assert!(config.num_attention_heads % config.num_key_value_heads == 0);
                prop_assert!(config.rotary.frequencies().is_ok());
                prop_assert!(config.vocab_size.checked_mul(config.hidden_size).is_some());
            }
        }
        prop_assert!(Architecture::detect(&config, "config.json".as_ref()).is_err());
    }
}
