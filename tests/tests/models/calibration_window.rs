//! The attention probability that SparQ keeps of a sliding window.

use burn::tensor::Device;
use sparq::{Method, SparqConfig};
use sparq_models::CausalLm;
use sparq_models::calibration::kept_mass;
use sparq_models::checkpoint::Checkpoint;
use sparq_tests::*;

#[test]
fn top_k_of_the_window_size_keeps_everything() {
    let device = Device::flex();
    let checkpoint = Checkpoint::open(&fixture("hf/mistral_sliding")).unwrap();
    let model = load(&checkpoint, &device);
    let few = SparqConfig::new(2, 2);
    let method = Method::from(few);
    let mut cache = new_cache(&model, 1, 64, &method);
    let window = cache.layers[0].config().window.unwrap();
    let ids: Vec<i64> = (0..3 * window as i64).map(|id| 3 + id * 7 % 90).collect();
    model
        .prefill(tokens(&ids, 1, &device), &mut cache, 1)
        .unwrap();
    let configs = [few, SparqConfig::new(2, window)];
    let kept = kept_mass(&model, &mut cache, &[5, 9], &configs, &mut || ()).unwrap();
    let (few, all) = (kept[0].mean(), kept[1].worst());
    assert!((all - 1.0).abs() < 1e-5, "{all}");
    assert!(few > 0.0 && few < 0.99, "{few}");
}
