//! The seeds of the fuzzer: small valid files of every kind.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::{Value, json};
use sparq::SparqConfig;
use sparq_models::checkpoint::{Checkpoint, Conversion, StoredType};
use sparq_tests::fixture;

use crate::vocabularies::{byte_level, sentence_piece};
use crate::writer::{GgufFile, Meta};

/// Returns every seed by its path, `target/name`.
pub fn all() -> BTreeMap<String, Vec<u8>> {
    let mut seeds = BTreeMap::new();
    let mut add = |target: &str, made: Vec<(String, Vec<u8>)>| {
        seeds.extend(
            made.into_iter()
                .map(|(name, data)| (format!("{target}/{name}"), data)),
        );
    };
    add("chat", chat());
    add("config", config());
    add("converted", converted());
    add("gguf", gguf());
    add("index", index());
    add("request", request());
    add("safetensors", safetensors());
    add("tokenizer", tokenizer());
    add("tokenizer_config", tokenizer_config());
    add("torch", torch());
    seeds
}

/// Requests with every parameter, one per route and form of the prompt.
fn request() -> Vec<(String, Vec<u8>)> {
    let shared = json!({"model": "m", "n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 40,
        "repetition_penalty": 1.1, "presence_penalty": -1, "frequency_penalty": 1e-1,
        "logit_bias": {"7": -100}, "seed": -3, "stop": ["a", "\u{2603}"], "ignore_eos": true,
        "stream": true, "stream_options": {"include_usage": true}, "method": "sparq", "user": "u"});
    let with = |more: Value| {
        let mut all = shared.clone();
        let more = more.as_object().unwrap().clone();
        all.as_object_mut().unwrap().extend(more);
        all.to_string().into_bytes()
    };
    let text = json!({"prompt": "a\n\"b", "max_tokens": 9, "logprobs": 3});
    let tokens = json!({"prompt": [[1, 2], "x", [4294967295u32]], "echo": true, "best_of": 2});
    let chat = json!({"messages": [{"role": "developer", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}], "name": "n"},
        {"role": "assistant", "content": "c", "tool_calls": null}],
        "max_completion_tokens": 5, "logprobs": true, "top_logprobs": 20, "tools": [],
        "response_format": {"type": "text"}});
    let schema = json!({"type": "object", "required": ["a"], "additionalProperties": false,
        "properties": {"a": {"$ref": "#/$defs/b"}, "c": {"enum": ["x", 1, null]},
            "d": {"type": "number", "minimum": -1.5, "multipleOf": 0.5},
            "e": {"type": "string", "pattern": "^[a-z]{2,5}$"}, "f": {"format": "date"},
            "g": {"type": "array", "items": {"type": "integer", "maximum": 9}, "maxItems": 2},
            "h": {"allOf": [{"minLength": 1}, {"maxLength": 3}]}},
        "patternProperties": {"^x": {"const": true}},
        "$defs": {"b": {"anyOf": [{"type": ["string", "null"]}, {"$ref": "#"}]}}});
    let format = json!({"prompt": "a", "response_format": {"type": "json_schema",
        "json_schema": {"name": "n", "description": "d", "strict": true, "schema": schema}}});
    let any = json!({"messages": [{"role": "user", "content": "a"}],
        "response_format": {"type": "json_object"}});
    let tokenize = json!({"prompt": "a b", "add_special_tokens": false}).to_string();
    vec![
        ("text".into(), with(text)),
        ("tokens".into(), with(tokens)),
        ("chat".into(), with(chat)),
        ("schema".into(), format.to_string().into_bytes()),
        ("object".into(), with(any)),
        ("tokenize".into(), tokenize.into_bytes()),
    ]
}

fn chat() -> Vec<(String, Vec<u8>)> {
    const CHATML: &str = "{% for message in messages %}\
        {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}\
        {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    const ALTERNATING: &str = "{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{%- set rest = messages[1:] %}
{%- else %}{%- set rest = messages %}{%- endif %}
{%- for m in rest %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{%- endif %}
    {%- if m['role'] == 'user' %}{{ '[INST] ' ~ m.content.strip() ~ ' [/INST]' }}{% else %}\
        {{ m.content ~ eos_token }}{% endif %}
{%- endfor %}";
    const TOOLS: &str = "{%- set ns = namespace(n=0, names=['a', 'b']) -%}{%- macro item(x, y=1) -%}\
        {{ x | tojson(indent=2) }}{{ y }}{%- endmacro -%}
{%- for m in messages if m.role is defined and m.role not in ['tool'] -%}\
        {%- set ns.n = ns.n + m.content.split(' ') | length -%}
{{ item({'role': m.role | upper, 'n': ns.n, 'l': range(3) | list}) }}{%- if m.content.startswith('H') -%}\
        {% generation %}{{ m.content[::-1] }}{% endgeneration %}{%- endif -%}{%- endfor -%}
{{ strftime_now('%d %b %Y') }}{{ tools is none }}{{ ns.names | join(', ') }}{{ 'x' * 3 }}\
        {{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}";
    const PYTHON: &str = "{%- for m in messages %}\
        {{ m.content.rsplit(none, 1) }}{{ m.content.partition(' ')[0].zfill(9).center(12, '*') }}\
        {{ m.content.find('l', 1, -1) }}{{ m.content.splitlines(keepends=true) | length }}{{ '%-9s|' % m.role }}\
        {{ m | tojson(indent=1, separators=(', ', ': '), sort_keys=true) }}{{ m.content | tojson(true) }}{%- endfor %}\
        {{ '<b>x</b> &amp; y' | striptags | truncate(3, true, '', 0) | indent('> ', true) }}{{ 'x y' | wordcount }}\
        {% set j = joiner(', ') %}{% for k, v in {'b': 1e20, 'a': 'x'}.items() %}{{ j() }}{{ k }}={{ v }}{% endfor %}";
    let named = [
        ("chatml", CHATML),
        ("alternating", ALTERNATING),
        ("tools", TOOLS),
        ("python", PYTHON),
    ];
    named
        .map(|(name, source)| (name.to_owned(), source.into()))
        .into()
}

/// The configurations of the fixtures, reduced to the sizes of the weights that the target has.
fn config() -> Vec<(String, Vec<u8>)> {
    let folders = fs::read_dir(fixture("hf"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let seed = |folder: std::path::PathBuf| {
        let mut config: Value =
            serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let sizes = [
            ("hidden_size", 8),
            ("intermediate_size", 8),
            ("num_hidden_layers", 2),
            ("num_attention_heads", 2),
            ("num_key_value_heads", 1),
            ("head_dim", 4),
            ("vocab_size", 16),
            ("num_local_experts", 2),
            ("moe_intermediate_size", 8),
        ];
        for (key, size) in sizes {
            if !config[key].is_null() {
                config[key] = size.into();
            }
        }
        if let Some(part) = config.pointer_mut("/rope_parameters/partial_rotary_factor") {
            *part = 0.5.into();
        }
        for list in ["short_factor", "long_factor"] {
            let list = format!("/rope_parameters/{list}");
            if let Some(Value::Array(factors)) = config.pointer_mut(&list) {
                factors.truncate(1);
            }
        }
        if let Some(Value::Array(layers)) = config.get_mut("layer_types") {
            layers.truncate(2);
        }
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        (name, config.to_string().into_bytes())
    };
    // The weights have norms of heads, not those of OLMo 2 over all heads.
    folders
        .filter(|folder| !folder.ends_with("olmo2"))
        .map(seed)
        .collect()
}

/// Each seed is the length of the manifest, the manifest and the weights.
fn converted() -> Vec<(String, Vec<u8>)> {
    let types = [
        ("f32", StoredType::F32),
        ("f16", StoredType::F16),
        ("bf16", StoredType::BF16),
        ("q8", StoredType::Q8),
        ("q4", StoredType::Q4),
    ];
    let shapes: [(&str, &[usize]); 3] = [
        ("norm", &[3]),
        ("a.weight", &[4, 32]),
        ("embed.weight", &[2, 32]),
    ];
    let seed = |(name, dtype): (&str, StoredType)| {
        let weights = weights(Dtype::F32, &shapes);
        let checkpoint = Checkpoint::from_bytes("seed", b"{}", weights).unwrap();
        let folder = tempfile::tempdir().unwrap();
        Conversion::new(Arc::new(checkpoint))
            .with_dtype(Some(dtype))
            .with_attention(Some(SparqConfig::new(4, 8)))
            .write(folder.path())
            .unwrap();
        let manifest = fs::read(folder.path().join("sparq.json")).unwrap();
        let length = u16::try_from(manifest.len()).unwrap().to_le_bytes();
        let weights = fs::read(folder.path().join("model.bpk")).unwrap();
        (name.to_owned(), [&length[..], &manifest, &weights].concat())
    };
    types.map(seed).into()
}

fn gguf() -> Vec<(String, Vec<u8>)> {
    let mut blocks = GgufFile::llama();
    // The number of a type, the bytes of a block, the shape and the name. Heads have 16 rows.
    let floats = [(1, 2), (30, 2)].map(|(kind, bytes)| (kind, 256 * bytes, [16, 16], "attn_q"));
    let small = [(2, 18), (3, 20), (6, 22), (7, 24), (8, 34)];
    let small = small.map(|(kind, bytes)| (kind, 16 * bytes, [16, 32], "attn_k"));
    let large = [(12, 144), (13, 176), (14, 210)];
    let large = large.map(|(kind, bytes)| (kind, bytes, [1, 256], "ffn_up"));
    for (kind, bytes, shape, name) in floats.into_iter().chain(small).chain(large) {
        let bytes = (0..bytes).map(|at| (at % 61) as u8).collect();
        blocks.push(&format!("blk.{kind}.{name}.weight"), &shape, kind, bytes);
    }
    let mut chat = sentence_piece();
    let template =
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    chat.set("tokenizer.chat_template", Meta::Text(template.into()));
    chat.set("llama.attention.sliding_window", Meta::U32(8));
    let mut files = vec![
        ("blocks".to_owned(), blocks),
        ("sentence_piece".into(), chat),
    ];
    for pre in ["smollm", "gpt-2", "llama-bpe", "qwen2"] {
        files.push((pre.to_owned(), byte_level(pre)));
    }
    files
        .into_iter()
        .map(|(name, file)| (name, file.bytes()))
        .collect()
}

fn index() -> Vec<(String, Vec<u8>)> {
    let maps = [
        (
            "both",
            json!({"metadata": {"total_size": 8}, "weight_map": {"a": "a.safetensors", "b": "b/b.safetensors"}}),
        ),
        ("one", json!({"weight_map": {"a": "a.safetensors"}})),
    ];
    maps.map(|(name, map)| (name.to_owned(), map.to_string().into_bytes()))
        .into()
}

fn safetensors() -> Vec<(String, Vec<u8>)> {
    let types = [
        ("f32", Dtype::F32),
        ("f16", Dtype::F16),
        ("bf16", Dtype::BF16),
        ("i64", Dtype::I64),
    ];
    let shapes: [(&str, &[usize]); 4] = [
        ("a", &[3]),
        ("b.weight", &[2, 5]),
        ("c", &[1, 2, 2]),
        ("none", &[0, 4]),
    ];
    types
        .map(|(name, dtype)| (name.to_owned(), weights(dtype, &shapes)))
        .into()
}

/// Returns a safetensors file with tensors of small numbers.
fn weights(dtype: Dtype, tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let size = dtype.bitsize() / 8;
    let byte = |at: usize| if at % size == size - 1 { 0x3c } else { 0 };
    let data = tensors.iter().map(|(_, shape)| {
        let bytes = 0..size * shape.iter().product::<usize>();
        bytes.map(byte).collect()
    });
    let data: Vec<Vec<u8>> = data.collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        (*name, TensorView::new(dtype, shape.to_vec(), data).unwrap())
    });
    serialize(views, None).unwrap()
}

fn tokenizer_config() -> Vec<(String, Vec<u8>)> {
    let added = json!({"bos_token": "<s>", "eos_token": {"content": "<|end|>"}, "added_tokens_decoder": {
        "4": {"content": "<|end|>", "special": true, "lstrip": false, "rstrip": false, "normalized": false,
            "single_word": false},
        "3": {"content": "<s>", "special": true},
        "9": {"content": "b a", "special": false, "lstrip": true, "rstrip": true, "single_word": true},
    }});
    let chat = json!({"bos_token": "<s>", "chat_begins_with_bos": true, "chat_template": [
        {"name": "default", "template": "{% for m in messages %}{{ '%s:' % m.role ~ m.content }}{% endfor %}"},
        {"name": "tools", "template": "{{ messages | tojson(indent=2, sort_keys=true) }}"},
    ]});
    let seed = |name: &str, json: Value| (name.to_owned(), json.to_string().into_bytes());
    vec![seed("added", added), seed("chat", chat)]
}

fn tokenizer() -> Vec<(String, Vec<u8>)> {
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true,
        "single_word": false, "lstrip": false, "rstrip": true, "normalized": false})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let split = json!({"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}| ?\p{L}+(?!\S)|\s+"},
        "behavior": "Isolated", "invert": false});
    let template = |parts: Value| {
        json!({"type": "TemplateProcessing", "single": parts, "pair": parts,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}})
    };
    let first = json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
    // A trie without entries.
    let charsmap = "BAAAAAAAAAA=";
    let seeds = [
        (
            "bpe_bytes",
            json!({"version": "1.0", "added_tokens": [added(0, "<s>"), added(7, "<|end|>")],
                "normalizer": {"type": "NFC"},
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
                    "post_processor": template(first.clone()), "decoder": byte_level,
                "model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2, "Ġ": 3, "ab": 4, "Ġab": 5, "1": 6,
                    "<|end|>": 7}, "merges": ["a b", "Ġ ab"], "ignore_merges": true}}),
        ),
        (
            "bpe_fallback",
            json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(0, "<s>")],
                "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
                "pre_tokenizer": null, "post_processor": {"type": "ByteLevel", "add_prefix_space": true,
                    "trim_offsets": true},
                "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"Regex": "▁+"},
                    "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip",
                    "content": " ", "start": 1, "stop": 0}]},
                "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": "",
                    "end_of_word_suffix": "", "fuse_unk": true, "byte_fallback": true,
                    "vocab": {"<s>": 0, "<unk>": 1, "<0x0A>": 2, "<0xE6>": 3, "▁": 4, "a": 5, "▁a": 6},
                        "merges": [["▁", "a"]]}}),
        ),
        (
            "unigram",
            json!({"version": "1.0", "added_tokens": [added(0, "<s>")],
                "normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled",
                    "precompiled_charsmap": charsmap}, {"type": "Strip", "strip_left": true,
                    "strip_right": true}, {"type": "NFKD"}]},
                "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                    "split": true}, "post_processor": template(first),
                "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true},
                "model": {"type": "Unigram", "unk_id": 1, "vocab": [["<s>", 0.0], ["<unk>", 0.0], ["▁", -2.0],
                    ["a", -3.0], ["ab", -4.0], ["▁He", -5.0]], "byte_fallback": false}}),
        ),
        (
            "wordpiece",
            json!({"version": "1.0", "truncation": {"direction": "Right", "max_length": 4,
                "strategy": "LongestFirst", "stride": 1}, "padding": {"strategy": {"Fixed": 8},
                "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
                "pad_token": "[PAD]"},
                "added_tokens": [added(0, "[PAD]"), added(1, "[UNK]")],
                "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                    "strip_accents": null, "lowercase": true}, "pre_tokenizer": {"type": "BertPreTokenizer"},
                "post_processor": {"type": "BertProcessing", "sep": ["[UNK]", 1], "cls": ["[PAD]", 0]},
                    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
                "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 100, "vocab": {"[PAD]": 0, "[UNK]": 1, "a": 2, "##b": 3,
                    "hello": 4}}}),
        ),
        (
            "wordlevel",
            json!({"version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"},
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"},
                    {"type": "Punctuation", "behavior": "MergedWithNext"}, {"type": "Digits",
                    "individual_digits": false}, {"type": "CharDelimiterSplit", "delimiter": "_"},
                    {"type": "UnicodeScripts"}]},
                "post_processor": {"type": "RobertaProcessing", "sep": ["<s>", 0], "cls": ["<s>", 0],
                    "trim_offsets": true, "add_prefix_space": true}, "decoder": {"type": "BPEDecoder",
                    "suffix": "</w>"},
                "model": {"type": "WordLevel", "vocab": {"<s>": 0, "hello": 1, "a": 2}, "unk_token": "<s>"}}),
        ),
    ];
    seeds
        .map(|(name, json)| (name.to_owned(), json.to_string().into_bytes()))
        .into()
}

/// The fixtures that PyTorch wrote.
fn torch() -> Vec<(String, Vec<u8>)> {
    let seed = |name: &str| {
        let bytes = fs::read(fixture(&format!("torch/{name}.bin"))).unwrap();
        (name.to_owned(), bytes)
    };
    ["module", "protocol_5", "training", "views"]
        .map(seed)
        .into()
}
