//! The plans of a model on its device: [`Sharing`].

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor};
use sparq::methods::Dense;
use sparq::{Method, SparqError};

use super::{LayerSharing, value};

/// A measurement with the roles of the layers for each number of anchors.
///
/// The maps of heads are on the device from the start, so that a decode step uploads nothing.
#[derive(Debug)]
pub(crate) struct Sharing {
    measured: LayerSharing,
    /// Entry n is for n anchors; `None` if there is no such plan.
    roles: Vec<Option<Arc<Roles>>>,
}

/// The role of each layer in a decode step.
#[derive(Debug)]
pub(crate) struct Roles(Vec<Role>);

/// The role of a layer.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "one per layer")]
pub(crate) enum Role {
    /// It selects positions, perhaps for later layers too.
    Anchor { is_reused: bool },
    /// It takes the positions of an earlier layer.
    Reuse {
        anchor: usize,
        /// The KV head of the anchor for each KV head, [H_kv] in u32.
        heads: Tensor<1, Int>,
    },
}

impl Sharing {
    /// Makes the plans of a measurement that fits the model. The layers before `first` take no
    /// part.
    pub fn new(measured: LayerSharing, first: usize, device: &Device) -> Self {
        let mut maps = HashMap::new();
        let mut map = |a: usize, b: usize| {
            let upload = || {
                let heads = measured.heads[b][a].as_slice();
                Tensor::<1, Int>::from_data(heads, (device, DType::U32))
            };
            maps.entry((a, b)).or_insert_with(upload).clone()
        };
        let roles = measured.plans(first).into_iter().map(|plan| {
            let plan = plan?;
            let role = |(layer, &anchor): (usize, &usize)| match layer == anchor {
                true => {
                    let later = &plan.anchor_of[layer + 1..];
                    let is_reused = later.contains(&layer);
                    Role::Anchor { is_reused }
                }
                false => Role::Reuse {
                    anchor,
                    heads: map(anchor, layer),
                },
            };
            let roles = plan.anchor_of.iter().enumerate().map(role);
            Some(Arc::new(Roles(roles.collect())))
        });
        let roles = roles.collect();
        Self { measured, roles }
    }

    pub fn measured(&self) -> &LayerSharing {
        &self.measured
    }
}

impl Roles {
    /// Returns the roles of the layers of a model with a method; `None` if every layer selects its
    /// own positions.
    ///
    /// # Errors
    /// [`SparqError::Value`] if the method has fewer anchors than layers and there is no plan for
    /// them.
    pub fn of(
        sharing: Option<&Arc<Sharing>>,
        layers: usize,
        method: &Method,
    ) -> Result<Option<Arc<Self>>, SparqError> {
        let anchors = method.anchors().of(layers);
        if anchors == layers {
            return Ok(None);
        }
        let Some(sharing) = sharing else {
            let expected = "all, or a model with a measurement of shared layers: convert it with \
                            --calibrate TEXT, or call Decoder::with_sharing";
            return Err(value("anchors of the method", expected.into(), anchors));
        };
        match sharing.roles.get(anchors) {
            Some(Some(roles)) => Ok(Some(roles.clone())),
            // The error of the plan tells the numbers that there are plans for.
            _ => Err(match sharing.measured.plan(anchors, 0) {
                Err(error) => error,
                Ok(_) => value("anchors", "fewer, beside dense layers".into(), anchors),
            }),
        }
    }

    /// Returns the role of a layer.
    pub fn role(&self, layer: usize) -> &Role {
        &self.0[layer]
    }

    /// Returns the method that determines the content of a layer's cache.
    pub fn cache_method(&self, layer: usize, method: &Method) -> Method {
        match self.role(layer) {
            Role::Anchor { .. } => *method,
            Role::Reuse { .. } => Dense {
                rows: method.rows(),
            }
            .into(),
        }
    }
}
