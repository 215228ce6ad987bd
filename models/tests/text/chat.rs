//! Chat templates of real checkpoints. The expected texts come from Python's jinja2, configured as
//! in transformers.

use std::{
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use sparq_models::text::{ChatMessage, ChatTemplate, ChatTemplateError};

use crate::files::{self, assert_contains};

const LLAMA_2: &str = "\
    {% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
    {% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
    {% set system_message = false %}{% endif %}{% for message in loop_messages %}\
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\
    {% endif %}{% if loop.index0 == 0 and system_message != false %}\
    {% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
    {% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}\
    {{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}\
    {{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}";

const LLAMA_3: &str = "\
    {% set loop_messages = messages %}{% for message in loop_messages %}\
    {% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'\
    + message['content'] | trim + '<|eot_id|>' %}\
    {% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

/// The template of Llama 3.2 without its parts for tools.
const LLAMA_3_2: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- This block extracts the system message, so we can slot it into the right place. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{#- System message #}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
            + message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

const SMOLLM_2: &str = "\
    {% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
    {{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}\
    {% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const MISTRAL: &str = "\
    {{ bos_token }}{% for message in messages %}\
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\
    {% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
    {% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}\
    {{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}";

fn template(source: &str) -> ChatTemplate {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    ChatTemplate::new(source, "test", tokens).unwrap()
}

/// Renders a template with one empty message.
fn render(source: &str) -> Result<String, ChatTemplateError> {
    template(source).render(&[ChatMessage::user("")], false)
}

fn two_turns() -> Vec<ChatMessage> {
    vec![
        ChatMessage::user(" Hi there "),
        ChatMessage::assistant("Hello."),
        ChatMessage::user("1 < 2?"),
    ]
}

fn with_system() -> Vec<ChatMessage> {
    let mut messages = vec![ChatMessage::system("Be brief.")];
    messages.extend(two_turns());
    messages
}

#[test]
fn llama_2_puts_system_message_in_first_turn() {
    assert_eq!(
        template(LLAMA_2).render(&with_system(), true).unwrap(),
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi there [/INST] Hello. </s><s>[INST] 1 < 2? [/INST]"
    );
    assert_eq!(
        template(LLAMA_2).render(&two_turns(), true).unwrap(),
        "<s>[INST] Hi there [/INST] Hello. </s><s>[INST] 1 < 2? [/INST]"
    );
}

#[test]
fn llama_3_trims_messages() {
    assert_eq!(
        template(LLAMA_3).render(&with_system(), true).unwrap(),
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\n1 < 2?<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    let text = template(LLAMA_3).render(&[ChatMessage::user("a")], false);
    let expected = "<s><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>";
    assert_eq!(text.unwrap(), expected);
}

#[test]
fn llama_3_2_states_the_date() {
    let template =
        template(LLAMA_3_2).with_clock(|| UNIX_EPOCH + Duration::from_secs(1_733_356_800));
    let mut messages = with_system();
    messages.push(ChatMessage::new("tool", "\"5\" > '4' & so on"));
    assert_eq!(
        template.render(&messages, true).unwrap(),
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\
         Today Date: 05 Dec 2024\n\nBe brief.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\n1 < 2?<|eot_id|>\
         <|start_header_id|>ipython<|end_header_id|>\n\n\"\\\"5\\\" > '4' & so on\"<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

#[test]
fn chat_ml_adds_a_default_system_message() {
    let messages = [ChatMessage::system("Be brief."), ChatMessage::user("a")];
    let template = template(SMOLLM_2);
    assert_eq!(
        template.render(&messages[1..], true).unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        template.render(&messages, false).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
    );
}

#[test]
fn mistral_ends_only_answers() {
    assert_eq!(
        template(MISTRAL).render(&two_turns(), true).unwrap(),
        "<s>[INST]  Hi there  [/INST]Hello.</s>[INST] 1 < 2? [/INST]"
    );
}

#[test]
fn rejection_reports_the_message_of_the_template() {
    let messages = ["a", "b"].map(ChatMessage::user);
    for source in [LLAMA_2, MISTRAL] {
        let error = template(source).render(&messages, true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "test: the template does not allow this conversation: \
             Conversation roles must alternate user/assistant/user/assistant/..."
        );
    }
    // The exception is found inside a macro too.
    let nested = "{% macro f() %}{{ raise_exception('no') }}{% endmacro %}{{ f() }}";
    let error = render(nested).unwrap_err();
    assert!(matches!(error, ChatTemplateError::Refused { message, .. } if message == "no"));
}

#[test]
fn failure_names_the_line() {
    let error = render("\n{{ messages[0].content.no_such_method() }}").unwrap_err();
    assert!(matches!(error, ChatTemplateError::Render { .. }), "{error}");
    assert_contains(&error.to_string(), &["test:2"]);
    let error = ChatTemplate::new("{% if %}", "some.jinja", [("", ""); 0]).unwrap_err();
    let message = error.to_string();
    assert!(
        message.starts_with("some.jinja: cannot be compiled"),
        "{message}"
    );
    let error = template(LLAMA_2).render(&[], true).unwrap_err();
    assert!(matches!(error, ChatTemplateError::Render { .. }), "{error}");
}

#[test]
fn fuel_stops_loops_but_not_long_conversations() {
    let loops = "{% for a in range(100000) %}".repeat(3) + &"{% endfor %}".repeat(3);
    let doubled = "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    for source in [&*loops, doubled] {
        let message = render(source).unwrap_err().to_string();
        assert!(message.contains("ran out of fuel"), "{message}");
    }
    let turn = [
        ChatMessage::user("x".repeat(1000)),
        ChatMessage::assistant("y".repeat(1000)),
    ];
    let messages: Vec<_> = turn.iter().cycle().take(20_000).cloned().collect();
    let text = template(LLAMA_2).render(&messages, true).unwrap();
    assert!(text.len() > 20_000_000);
}

#[test]
fn blocks_leave_no_blank_lines() {
    let source = "{% if true %}\n    {# a comment #}\n  {% set x = 1 %}\nx\n  {% endif %}\ny\n";
    assert_eq!(render(source).unwrap(), "x\ny");
}

#[test]
fn strings_have_the_methods_of_python() {
    let source = "{{ ' a b '.strip().upper() }}|{{ 'a-b'.split('-')[-1] }}|{{ 'think</think>x'.startswith('think') }}|\
                  {{ '\\n x'.lstrip('\\n') }}|{{ 'Ab'.lower().replace('b', 'c').title() }}|\
                  {{ messages[0].get('name', 'none') }}";
    assert_eq!(render(source).unwrap(), "A B|b|True| x|Ac|none");
}

#[test]
fn missing_arguments_are_none() {
    let source = "{{ tools }} {{ documents is none }} {{ pad_token is defined }}";
    assert_eq!(render(source).unwrap(), "None True False");
}

#[test]
fn tojson_matches_python() {
    let source =
        r#"{{ {"b": "<é'&>", "a": [1, 2.5, true, none]} | tojson }}|{{ "\\u003c\n" | tojson }}"#;
    let json = render(source).unwrap();
    let (map, string) = json.split_once('|').unwrap();
    let parsed: serde_json::Value = serde_json::from_str(map).unwrap();
    let expected = serde_json::json!({"b": "<é'&>", "a": [1, 2.5, true, null]});
    assert_eq!(parsed, expected);
    assert!(map.contains(r#""b": "<é'&>""#) && map.contains("[1, 2.5, true, null]"));
    assert_eq!(string, r#""\\u003c\n""#);
    let indented = render("{{ [1, {}] | tojson(indent=2) }}").unwrap();
    assert_eq!(indented, "[\n  1,\n  {}\n]");
    let messages = render("{{ messages | tojson(ensure_ascii=False) }}").unwrap();
    assert_eq!(messages, r#"[{"role": "user", "content": ""}]"#);
    let error = render("{{ 1 | tojson(ensure=True) }}").unwrap_err();
    assert!(error.to_string().contains("ensure"), "{error}");
}

#[test]
fn generation_blocks_render_their_content() {
    let trimmed = "a\n{%- generation -%} b {%- endgeneration %}c{{ '{% raw' }}";
    assert_eq!(render(trimmed).unwrap(), "abc{% raw");
    let lines = "{% generation %}\nb\n{% endgeneration %}\nc";
    assert_eq!(render(lines).unwrap(), "b\nc");
}

#[test]
fn strftime_now_refuses_unknown_formats() {
    let error = render("{{ strftime_now('%Q') }}").unwrap_err().to_string();
    assert!(error.contains("found %Q in \"%Q\""), "{error}");
}

#[test]
fn messages_deserialize_from_json() {
    let messages: Vec<ChatMessage> =
        serde_json::from_str(r#"[{"role": "user", "content": "a"}]"#).unwrap();
    assert_eq!(messages, [ChatMessage::user("a")]);
}

/// Writes files into a new folder.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let files = files.iter().map(|(name, text)| (*name, text.as_bytes()));
    files::folder(&files.collect::<Vec<_>>())
}

/// Renders the template `name` of a folder with one empty message.
fn rendered(folder: &Path, name: Option<&str>) -> Result<Option<String>, ChatTemplateError> {
    ChatTemplate::from_folder(folder, name)?
        .map(|template| template.render(&[ChatMessage::user("")], false))
        .transpose()
}

/// Renders the template `name` of a folder that has it.
fn rendered_text(folder: &Path, name: Option<&str>) -> String {
    rendered(folder, name).unwrap().unwrap()
}

/// Asserts that a folder has no template of the name `rag`, but these.
#[track_caller]
fn assert_no_rag(folder: &Path, found: &str) {
    let error = rendered(folder, Some("rag")).unwrap_err().to_string();
    let expected = format!("expected the name \"rag\", found {found}");
    assert!(error.ends_with(&expected), "{error}");
}

#[test]
fn folder_without_template_gives_none() {
    let folder = folder(&[("tokenizer_config.json", r#"{"bos_token": "<s>"}"#)]);
    assert!(rendered(folder.path(), None).unwrap().is_none());
    assert_no_rag(folder.path(), "no chat template");
}

#[test]
fn missing_default_template_names_the_file() {
    let config =
        r#"{"chat_template": [{"name": "a", "template": ""}, {"name": "b", "template": ""}]}"#;
    let folder = folder(&[("tokenizer_config.json", config)]);
    let error = rendered(folder.path(), None).unwrap_err().to_string();
    let expected =
        "tokenizer_config.json: chat template: expected the name \"default\", found a, b";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn special_tokens_come_from_config_or_map() {
    let config = r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "unk_token": null,
                "chat_template": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}"}"#;
    let map = r#"{"bos_token": "other", "pad_token": "<pad>"}"#;
    let folder = folder(&[
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", map),
    ]);
    assert_eq!(rendered_text(folder.path(), None), "<s></s><pad>");
}

#[test]
fn named_template_is_chosen_from_a_list() {
    let config = r#"{"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]}"#;
    let folder = folder(&[("tokenizer_config.json", config)]);
    assert_eq!(rendered_text(folder.path(), None), "a");
    assert_eq!(rendered_text(folder.path(), Some("tool_use")), "b");
    assert_no_rag(folder.path(), "default, tool_use");
}

#[test]
fn template_files_precede_the_configuration() {
    let mut files = vec![(
        "tokenizer_config.json",
        r#"{"eos_token": "</s>", "chat_template": "config"}"#,
    )];
    let text = |files: &[_]| rendered_text(folder(files).path(), None);
    assert_eq!(text(&files), "config");
    files.push(("chat_template.json", r#"{"chat_template": "json"}"#));
    assert_eq!(text(&files), "json");
    files.push(("chat_template.jinja", "jinja{{ eos_token }}\n"));
    assert_eq!(text(&files), "jinja</s>");
    files.push(("additional_chat_templates/rag.jinja", "rag"));
    assert_eq!(text(&files), "jinja</s>");
    assert_eq!(rendered_text(folder(&files).path(), Some("rag")), "rag");
}

#[test]
fn errors_name_file_and_entry() {
    let error = |name, text| {
        let folder = folder(&[(name, text)]);
        rendered(folder.path(), None).unwrap_err().to_string()
    };
    let wrong = error("tokenizer_config.json", r#"{"chat_template": 5}"#);
    let expected = "tokenizer_config.json: \"chat_template\": expected a template or a list of objects with \
                    \"name\" and \"template\", found 5";
    assert!(wrong.ends_with(expected), "{wrong}");
    let nameless = r#"{"chat_template": [{"template": "a"}]}"#;
    let nameless = error("tokenizer_config.json", nameless);
    assert!(nameless.ends_with("found an object of 1"), "{nameless}");
    let syntax = error("chat_template.jinja", "{% for %}");
    assert_contains(&syntax, &["chat_template.jinja: cannot be compiled"]);
    let broken = error("tokenizer_config.json", "{");
    assert_contains(&broken, &["tokenizer_config.json: not valid JSON"]);
}
