use super::*;

#[test]
fn named_cases_cover_every_feature() {
    let cases = cases(FloatDType::F32);
    let has = |feature: &str, test: &dyn Fn(&Prefill) -> bool| {
        let found = cases.iter().any(|(_, case)| test(case));
        assert!(found, "no case has {feature}");
    };
    let group = |case: &Prefill| case.problem.group_size();
    for size in [1, 2, 4, 8] {
        has("each size of group", &|case| group(case) == size);
    }
    for head_dim in [32, 64, 80, 96, 128, 256] {
        has("each head dim", &|case| case.problem.head_dim == head_dim);
    }
    has("a window", &|case| case.window.is_some());
    has("left padding", &|case| case.padding.iter().any(|&n| n > 0));
    has("a ragged batch", &|case| {
        case.before[0] != *case.before.last().unwrap()
    });
    has("few queries after many positions", &|case| {
        case.len <= 16 && case.problem.seq > 500
    });
}

/// A result that attends to twice the positions must fail. A few positions more may weigh nothing.
#[test]
fn attending_to_other_positions_fails() {
    let device = Device::default();
    for (_, case) in cases(FloatDType::F32) {
        let mut content = case.content(&mut Rng::new(1)).unwrap();
        let cache = case.fill(&content, 5, &device).unwrap();
        content.stored = case.stored(&cache).unwrap();
        let found = case.attend(&content, &cache, &device);
        let found: Array<f32> = read("output", found).unwrap();
        let last = |case: &Prefill| {
            let query = [case.before.len() - 1, 0, case.len - 1];
            let heads = case.problem.n_heads;
            let at = (query[0] * heads * case.len + query[2]) * case.problem.head_dim;
            let found = &found.values()[at..at + case.problem.head_dim];
            case.judge_query(&content, query, found)
        };
        last(&case).unwrap();
        let last_sequence = case.before.len() - 1;
        let seen = case.before[last_sequence] + case.len - case.padding[last_sequence];
        let window = case.window.unwrap_or(seen).min(seen);
        if window > 1 {
            let narrow = Prefill {
                window: Some(window.div_ceil(2)),
                ..case.clone()
            };
            assert!(last(&narrow).is_err(), "{case}");
        }
    }
}

#[test]
fn random_cases_stay_within_their_budget() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let case = Prefill::draw(&mut rng, Size::Small, FloatDType::F16, FloatDType::F32);
        let Problem {
            batch,
            n_heads,
            head_dim,
            seq,
            ..
        } = case.problem;
        assert!(
            batch * n_heads * case.len * seq * head_dim <= 2_000_000,
            "{case}"
        );
        assert!(case.padding.iter().all(|&padding| padding < seq), "{case}");
        assert_eq!(case.before.len(), batch);
    }
}
