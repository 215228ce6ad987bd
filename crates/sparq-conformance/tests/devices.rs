//! All reference cases and some random cases on every device.

use std::path::Path;

use burn::tensor::{Device, FloatDType};
use sparq_conformance::{
    Array, Case, Random, Report, Size, read_folder, run, run_all, run_prefills,
};
use sparq_device::DeviceChoice;

fn devices() -> Vec<Device> {
    let devices = sparq_device::for_tests().unwrap();
    devices.iter().map(DeviceChoice::open).collect()
}

fn all_cases() -> Vec<Case> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    read_folder(&fixtures).unwrap()
}

fn check(device: &Device, dtype: FloatDType) -> Report {
    let cases = all_cases();
    let report = run_all(&cases, device, dtype, |_| {});
    assert_eq!(report.outcomes.len(), 35);
    report
}

#[test]
fn all_cases_pass_in_fp32() {
    for device in devices() {
        let report = check(&device, FloatDType::F32);
        assert!(report.all_passed(), "{report}");
        for outcome in &report.outcomes {
            assert_eq!(outcome.sets_equal, Some(true), "{}", outcome.name);
            assert_eq!(outcome.components_equal, Some(true), "{}", outcome.name);
        }
    }
}

#[test]
fn all_cases_pass_in_supported_16_bit_types() {
    for device in devices() {
        for dtype in [FloatDType::F16, FloatDType::BF16] {
            let report = check(&device, dtype);
            if device.supports_dtype(dtype) {
                assert!(report.all_passed(), "{report}");
            } else {
                assert_eq!(report.passed, 0, "{report}");
                let reason = report.outcomes[0].reason.as_deref().unwrap_or_default();
                assert!(reason.contains("does not compute in"), "{reason}");
            }
        }
    }
}

#[test]
fn prefills_pass_in_every_supported_type() {
    for device in devices() {
        for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
            let mut seen = 0;
            let report = run_prefills(&device, dtype, |_| seen += 1);
            assert_eq!(report.outcomes.len(), seen);
            assert_eq!(
                report.all_passed(),
                device.supports_dtype(dtype),
                "{report}"
            );
            assert!(report.passed == 0 || report.failed == 0, "{report}");
        }
    }
}

#[test]
fn wrong_expectations_fail() {
    let cases = all_cases();
    for device in devices() {
        let named = cases.iter().find(|case| case.name == "gqa_r4");
        let mut case = named.unwrap().clone();
        assert!(run(&case, &device, FloatDType::F32).passed);
        case.config.rank += 1;
        let outcome = run(&case, &device, FloatDType::F32);
        assert!(!outcome.passed);
        assert!(outcome.reason.unwrap().starts_with("components at [0, 0]"));
    }
}

#[test]
fn a_panic_fails_the_case_with_its_message() {
    let cases = all_cases();
    for device in devices() {
        let mut case = cases[0].clone();
        // burn panics if data of three dimensions becomes a tensor of four.
        let values = case.inputs.q.values().to_vec();
        case.inputs.q = Array::new(vec![1, 4, 32], values).unwrap();
        let outcome = run(&case, &device, FloatDType::F32);
        let reason = outcome.reason.unwrap();
        assert!(!outcome.passed && outcome.sets_equal.is_none());
        assert!(reason.starts_with("panic: "), "{reason}");
        assert!(!reason.contains('\n'), "{reason}");
    }
}

#[test]
fn errors_of_the_library_fail_the_case() {
    let cases = all_cases();
    for device in devices() {
        let mut case = cases[0].clone();
        case.problem.n_kv_heads *= 2;
        let reason = run(&case, &device, FloatDType::F32).reason.unwrap();
        assert!(reason.starts_with("keys: expected shape"), "{reason}");
    }
}

#[test]
fn reports_count_and_name_their_outcomes() {
    let cases = all_cases();
    for device in devices() {
        let mut two = cases[..2].to_vec();
        two[1].config.mean_value = sparq::methods::MeanValue::Always;
        let mut seen = Vec::new();
        let report = run_all(&two, &device, FloatDType::F32, |outcome| {
            seen.push(outcome.name.clone());
        });
        assert_eq!(seen, ["mha_r8", "mha_r8_norealloc"]);
        assert_eq!((report.passed, report.failed), (1, 1));
        assert!(!report.all_passed());
        let table = report.to_string();
        for part in ["mha_r8 ", "FAIL: output"] {
            assert!(table.contains(part), "{table}");
        }
        assert!(table.ends_with("1 passed, 1 failed"), "{table}");
        let json: serde_json::Value = serde_json::to_value(&report).unwrap();
        assert_eq!(json["outcomes"][0]["sets_equal"], true);
    }
}

#[test]
fn random_cases_pass_on_cpus() {
    let devices = sparq_device::for_tests().unwrap();
    // On a GPU every case compiles its own kernels. `sparq check --random` covers GPUs.
    for device in devices.iter().filter(|device| !device.is_gpu()) {
        let random = Random {
            size: Size::Small,
            dtype: None,
        };
        let report = random.run_all(0, 40, &device.open(), |_| {});
        let failed = report.outcomes.iter().find(|outcome| !outcome.passed);
        assert!(report.all_passed(), "{failed:?}");
        let shapes: Vec<&str> = report.outcomes.iter().map(|o| &o.shape[..]).collect();
        for setting in ["Full", "Bits8", "Bits4", "Logits", "AbsSum", "Never"] {
            let found = shapes.iter().any(|shape| shape.contains(setting));
            assert!(found, "no case has {setting}");
        }
        assert_eq!(random.run(3, &device.open()), report.outcomes[3]);
    }
}
