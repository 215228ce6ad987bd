//! What SparQ keeps of a sliding window is counted within the window.

use burn::tensor::{Device, FloatDType};
use sparq::{Method, SparqConfig};
use sparq_models::CausalLm;
use sparq_models::calibration::kept_mass;
use sparq_models::checkpoint::Checkpoint;
use sparq_tests::*;

#[test]
fn as_many_positions_as_the_window_has_keep_all_of_it() {
    let device = Device::flex();
    let model = load(
        &Checkpoint::open(&fixture("hf/mistral_sliding")).unwrap(),
        &device,
    );
    let few = SparqConfig::new(2, 2);
    let method = Method::from(few);
    let mut cache = model.new_cache(1, 64, FloatDType::F32, &method).unwrap();
    let window = cache.layers[0].config().window.unwrap();
    let ids: Vec<i64> = (0..3 * window as i64).map(|id| 3 + id * 7 % 190).collect();
    model
        .prefill(tokens(&ids, 1, &device), &mut cache, 1)
        .unwrap();
    let configs = [few, SparqConfig::new(2, window)];
    let kept = kept_mass(&model, &mut cache, &[5, 9], &configs, &mut || ()).unwrap();
    assert!((kept[1].worst() - 1.0).abs() < 1e-5, "{}", kept[1].worst());
    assert!(
        kept[0].mean() > 0.0 && kept[0].mean() < 0.99,
        "{}",
        kept[0].mean()
    );
}
