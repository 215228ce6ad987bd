//! The names of activation functions: [`HiddenAct`].

pub use sparq::ops::Activation as HiddenAct;

/// The names of the functions in `config.json`.
const NAMES: [(&str, HiddenAct); 7] = [
    ("silu", HiddenAct::Silu),
    ("swish", HiddenAct::Silu),
    ("gelu", HiddenAct::Gelu),
    ("gelu_new", HiddenAct::GeluTanh),
    ("gelu_fast", HiddenAct::GeluTanh),
    ("gelu_pytorch_tanh", HiddenAct::GeluTanh),
    ("relu", HiddenAct::Relu),
];

/// Returns the function that `config.json` calls `name`, if it is supported.
pub(super) fn from_name(name: &str) -> Option<HiddenAct> {
    let found = NAMES.iter().find(|(known, _)| *known == name);
    found.map(|(_, act)| *act)
}

/// Returns the names that [`from_name`] accepts, for error messages.
pub(super) fn names() -> String {
    NAMES.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, Tolerance};

    use super::*;

    #[test]
    fn names_match_the_functions_of_pytorch() {
        let x = || Tensor::<1>::from_floats([-1.5, 0.0, 0.5, 2.0], &Device::default());
        let gelu_tanh = [-0.10042842, 0.0, 0.34571400, 1.95459769];
        let cases = [
            ("silu", [-0.27363872, 0.0, 0.31122967, 1.76159416]),
            ("swish", [-0.27363872, 0.0, 0.31122967, 1.76159416]),
            ("gelu", [-0.10021080, 0.0, 0.34573123, 1.95449974]),
            ("gelu_new", gelu_tanh),
            ("gelu_fast", gelu_tanh),
            ("gelu_pytorch_tanh", gelu_tanh),
            ("relu", [0.0, 0.0, 0.5, 2.0]),
        ];
        for (name, expected) in cases {
            let act = from_name(name).unwrap();
            let expected = Tensor::<1>::from_floats(expected, &Device::default()).into_data();
            act.forward(x())
                .into_data()
                .assert_approx_eq::<f32>(&expected, Tolerance::absolute(2e-6));
        }
        assert_eq!(from_name("quick_gelu"), None);
    }
}
