//! `sparq plan`: predicts decode steps of a model on a machine.

mod document;
mod options;
mod quality;
mod view;

use anyhow::{Context, Result};
use sparq::methods::{Budget, Components, Dense, GroupScore};
use sparq::{Method, RowFormat, Sketch, SparqConfig};
use sparq_device::DeviceChoice;
use sparq_output::files::OutputFile;
use sparq_plan::{ModelShape, Setup};

use crate::exit::Outcome;
use crate::output::Output;
use document::{Document, Prediction, Row};
pub use options::PlanArgs;

/// Predicts and prints.
///
/// # Errors
/// If the model, machine or results cannot be read, the GPUs cannot share the heads, or measuring
/// fails.
pub fn run(args: &PlanArgs, device: &DeviceChoice, out: Output) -> Result<Outcome> {
    let model = args.model()?;
    let output = args.save.as_deref().map(OutputFile::create).transpose()?;
    let (machine, measured) = args.machine(&model.shape, device)?;
    if let Some(output) = output {
        let mut text =
            serde_json::to_vec_pretty(&machine).context("cannot write the machine as JSON")?;
        text.push(b'\n');
        output.finish_with(&text)?;
    }
    let setup = args.setup(model.shape, machine)?;
    let methods = methods(args, &model)?;
    let dense = setup.model.step_bytes(
        &Method::DENSE,
        args.batch,
        args.context,
        setup.element_bytes,
    );
    let row = |method: &Method| row(args, &setup, method, dense);
    let rows = methods.iter().map(|(name, method)| {
        let row = row(method);
        Row {
            label: name.map_or(row.label.clone(), str::to_owned),
            ..row
        }
    });
    let rows = rows.collect();
    let quality = match &args.eval[..] {
        [] => None,
        files => Some(quality::cheapest(files, args.keep, &setup, args, row)?),
    };
    let document = Document {
        model: model.source,
        dtype: crate::args::dtype_name(args.dtype),
        measured,
        context: args.context,
        batch: args.batch,
        weight_bytes: setup.weight_bytes(),
        read_bytes: (setup.model.read_parameters * setup.element_bytes) as f64,
        price_per_hour: args.price.map(|price| price * setup.gpus as f64),
        methods: rows,
        quality,
        setup,
    };
    view::print(&document, out)?;
    out.document(&document)?;
    Ok(Outcome::Done)
}

/// Returns the methods to compare, dense attention first: those named, all methods at a budget
/// (each with its name), or SparQ with the given settings.
fn methods(args: &PlanArgs, model: &options::Model) -> Result<Vec<(Option<&'static str>, Method)>> {
    let plain = |methods: Vec<Method>| methods.into_iter().map(|method| (None, method)).collect();
    let others: Vec<(Option<&'static str>, Method)> = match (&args.methods[..], args.budget) {
        ([], None) => plain(sparq_methods(args, model)?),
        ([], Some(budget)) => Method::names()
            .into_iter()
            .filter_map(|name| {
                // Some methods cannot keep any budget.
                let method = named(name, Some(budget), args.context, &model.shape);
                Some((Some(name), method.ok()?))
            })
            .collect(),
        (names, budget) => plain(
            names
                .iter()
                .map(|name| named(name, budget, args.context, &model.shape))
                .collect::<Result<_>>()?,
        ),
    };
    let mut methods = vec![(None, Method::DENSE)];
    methods.extend(others);
    methods.dedup_by_key(|(_, method)| *method);
    Ok(methods)
}

/// Returns the method of a name, with its own settings or those for a budget.
fn named(name: &str, budget: Option<f64>, context: usize, model: &ModelShape) -> Result<Method> {
    let head_dim = model.head_dim;
    let method = name.parse::<Method>().and_then(|method| match budget {
        Some(budget) if !matches!(method, Method::Dense(_)) => {
            let budget = Budget::new(head_dim, context, budget)?;
            method.at_budget(&budget.with_layers(model.layers))
        }
        _ => Ok(method),
    });
    let method = method.and_then(|method| method.validate(head_dim).map(|()| method));
    method.with_context(|| format!("--method {name}"))
}

/// Returns SparQ with the given settings. If they do not choose the sketch or the group scores,
/// adds the variants with a full sketch and with a group that scores as one query.
fn sparq_methods(args: &PlanArgs, model: &options::Model) -> Result<Vec<Method>> {
    let (rows, head_dim) = (args.sparq.kv_rows, model.shape.head_dim);
    let recommended = || SparqConfig::recommended(head_dim, rows);
    let base = args.sparq.over(model.attention.unwrap_or_else(recommended));
    base.validate(model.shape.head_dim)?;
    let mut methods = Vec::new();
    if base.rows != RowFormat::Float {
        methods.push(Dense { rows: base.rows }.into());
    }
    if args.sparq.sketch.is_none() {
        methods.push(base.with_sketch(Sketch::Full).into());
    }
    methods.push(base.into());
    let given = args.sparq.group_score.is_some() || args.sparq.components.is_some();
    if model.shape.heads > model.shape.kv_heads && !given {
        let as_one = base
            .with_group_score(GroupScore::Logits)
            .with_components(Components::AbsSum);
        methods.push(as_one.into());
    }
    Ok(methods)
}

fn row(args: &PlanArgs, setup: &Setup, method: &Method, dense: f64) -> Row {
    let (batch, context) = (args.batch, args.context);
    let step_bytes = setup
        .model
        .step_bytes(method, batch, context, setup.element_bytes);
    let largest = setup.largest_batch(method, context);
    Row {
        settings: *method,
        label: view::label(method, setup.model.heads > setup.model.kv_heads),
        cache_bytes: setup.cache_bytes(method, context),
        step_bytes,
        share_of_dense: step_bytes / dense,
        at_batch: predict(args, setup, method, batch),
        lossless: match method {
            Method::Sparq(config) => Some(setup.lossless(config, args.acceptance, batch, context)),
            _ => None,
        },
        fits: largest >= batch,
        largest: (largest > 0).then(|| predict(args, setup, method, largest)),
        break_even: match method {
            Method::Sparq(config) => setup.break_even(config, batch),
            _ => None,
        },
    }
}

fn predict(args: &PlanArgs, setup: &Setup, method: &Method, batch: usize) -> Prediction {
    let parts = setup.step(method, batch, args.context);
    let tokens_per_s = setup.tokens_per_s(method, batch, args.context);
    let per_second = args.price.map(|price| price * setup.gpus as f64 / 3600.0);
    Prediction {
        batch,
        parts,
        step_us: parts.total_us(),
        tokens_per_s,
        price_per_million: per_second.map(|price| price / tokens_per_s * 1e6),
    }
}
