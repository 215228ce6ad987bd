//! Parts of Python and jinja2 that published templates use. The expected texts are those of jinja2
//! 3.1.6, configured as in transformers 5.

use sparq_models::text::{ChatMessage, ChatTemplate};

fn try_render(source: &str) -> Result<String, String> {
    let template = ChatTemplate::new(source, "test", [("bos_token", "<s>")]);
    let template = template.map_err(|error| error.to_string())?;
    let text = template.render(&[ChatMessage::user("Hi")], true);
    text.map_err(|error| error.to_string())
}

/// Asserts what each template renders.
#[track_caller]
fn check(cases: &[(&str, &str)]) {
    for (source, expected) in cases {
        assert_eq!(try_render(source).as_deref(), Ok(*expected), "{source}");
    }
}

#[test]
fn dictionaries_keep_their_order() {
    check(&[
        ("{{ {'b': 1, 'a': 2} }}", "{'b': 1, 'a': 2}"),
        ("{{ {'b': 1, 'a': 2} | tojson }}", r#"{"b": 1, "a": 2}"#),
        (
            "{% for key in {'b': 1, 'a': 2} %}{{ key }}{% endfor %}",
            "ba",
        ),
        (
            "{% for key, value in {'b': 1, 'a': 2}.items() %}{{ key }}{{ value }}{% endfor %}",
            "b1a2",
        ),
        (
            "{{ {'b': 1, 'a': 2}.keys() | list }}{{ dict(z=1, y=2) }}",
            "['b', 'a']{'z': 1, 'y': 2}",
        ),
        ("{{ {'b': 1, 'a': 2} | dictsort }}", "[('a', 2), ('b', 1)]"),
        ("{{ messages }}", "[{'role': 'user', 'content': 'Hi'}]"),
    ]);
}

#[test]
fn line_ends_of_any_system_are_read_as_lf() {
    check(&[
        ("a\r\nb\r\n", "a\nb"),
        ("a\rb\r\n\r\n", "a\nb\n"),
        ("{% if true %}\r\nx\r\n{% endif %}\r\ny", "x\ny"),
        ("{{ 'a\r\nb' | tojson }}", r#""a\nb""#),
    ]);
}

#[test]
fn strings_and_mappings_are_sequences() {
    check(&[
        (
            "{{ 'a' is sequence }} {{ [1] is sequence }} {{ {} is sequence }} {{ (1, 2) is sequence }} \
             {{ range(3) is sequence }} {{ 1 is sequence }} {{ none is sequence }}",
            "True True True True True False False",
        ),
        (
            "{% if messages[0].content is sequence and messages[0].content is not string %}parts\
             {% else %}text{% endif %}",
            "text",
        ),
        (
            "{{ tools is iterable }} {{ [] is iterable }} {{ 'a' is iterable }} {{ missing is iterable }} \
             {{ 1 is iterable }}",
            "False True True True False",
        ),
    ]);
}

#[test]
fn tojson_has_the_options_of_transformers() {
    check(&[
        (
            "{{ {'b': [1, 2.5], 'a': none} | tojson(separators=(',', ':'), sort_keys=True) }}",
            r#"{"a":null,"b":[1,2.5]}"#,
        ),
        (
            "{{ {'b': \"<é😀'&>\\u2028\\x7f\\x01\"} | tojson(ensure_ascii=True) }}",
            r#"{"b": "<\u00e9\ud83d\ude00'&>\u2028\u007f\u0001"}"#,
        ),
        ("{{ 'é' | tojson(true) }}", r#""\u00e9""#),
        (
            "{{ {'b': {}, 'a': [1]} | tojson(false, 2) }}",
            "{\n  \"b\": {},\n  \"a\": [\n    1\n  ]\n}",
        ),
        (
            "{{ [1, {'c': []}] | tojson(indent=1, separators=(', ', ' : ')) }}",
            "[\n 1, \n {\n  \"c\" : []\n }\n]",
        ),
        ("{{ [1] | tojson(indent='\\t') }}", "[\n\t1\n]"),
        (
            "{{ [1] | tojson(indent=0) }}{{ [] | tojson(indent=2) }}",
            "[\n1\n][]",
        ),
        (
            "{{ {1: 2, none: 3, 1.5: 4} | tojson }}",
            r#"{"1": 2, "null": 3, "1.5": 4}"#,
        ),
        (
            "{{ [1e16, 1.0, 1e-7] | tojson }} {{ 'a\\t\\b\"' | tojson }}",
            r#"[1e+16, 1.0, 1e-07] "a\t\b\"""#,
        ),
    ]);
    let error = try_render("{{ missing | tojson }}").unwrap_err();
    assert!(error.contains("undefined has no form in JSON"), "{error}");
}

#[test]
fn strings_have_the_methods_of_python() {
    check(&[
        (
            "{{ 'a,b,c'.rsplit(',', 1) }} {{ ' a b c '.rsplit(none, 1) }} {{ ' a b c '.split(none, 1) }}",
            "['a,b', 'c'] [' a b', 'c'] ['a', 'b c ']",
        ),
        (
            "{{ 'a,b,,c'.split(sep=',', maxsplit=2) }} {{ ''.split() }} {{ ''.split(',') }} {{ ' a '.split(' ') }}",
            "['a', 'b', ',c'] [] [''] ['', 'a', '']",
        ),
        (
            "{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'a'.rpartition('x') }}",
            "('a', '=', 'b=c') ('a=b', '=', 'c') ('', '', 'a')",
        ),
        (
            "{{ '-42'.zfill(5) }} {{ 'ab'.ljust(4) }}|{{ 'ab'.rjust(4, '.') }}|{{ 'abcd'.center(7) }}|",
            "-0042 ab  |..ab|  abcd |",
        ),
        (
            "{{ 'pre-x'.removeprefix('pre-') }} {{ 'x.json'.removesuffix('.json') }} {{ 'x'.removeprefix('y') }}",
            "x x x",
        ),
        (
            "{{ 'héllo'.index('l', 3) }} {{ 'hello'.rindex('l') }} {{ 'hello'.find('l', 0, -3) }} \
             {{ 'hello'.count('l', 3) }} {{ 'hello'.startswith('l', 2) }} {{ 'hello'.endswith(('x', 'o')) }}",
            "3 3 -1 1 True True",
        ),
        (
            "{{ 'aBc'.swapcase() }} {{ \"they're\".title() }} {{ 'Straße'.casefold() }} {{ 'a\\tb'.expandtabs(4) }}",
            "AbC They'Re strasse a   b",
        ),
        (
            "{{ 'a\\nb\\r\\nc\\rd\\n'.splitlines() }} {{ 'a\\r\\nb'.splitlines(keepends=True) }}",
            "['a', 'b', 'c', 'd'] ['a\\r\\n', 'b']",
        ),
        (
            "{{ '12'.isdecimal() }} {{ 'Ab Cd'.istitle() }} {{ 'a_1'.isidentifier() }} {{ 'a\\n'.isprintable() }}",
            "True True True False",
        ),
        (
            "{{ [1, 2].index(2) }} {{ [1].copy() }} {{ {'a': 1}.copy() }} {{ (1, 2).index(1) }}",
            "1 [1] {'a': 1} 0",
        ),
    ]);
    for source in [
        "{{ 'a'.index('z') }}",
        "{{ [1].index(5) }}",
        "{{ 'a'.split('') }}",
        "{{ 'a'.zfill() }}",
        "{{ 'a'.partition(1) }}",
        // transformers renders in a sandbox.
        "{{ [1].append(2) }}",
    ] {
        assert!(try_render(source).is_err(), "{source}");
    }
}

#[test]
fn percent_formats_a_string() {
    check(&[
        (
            "{{ '%s is %d, %.2f%%' % ('a', 42, 0.5) }} {{ 'x' ~ '%d' % 3 ~ 'y' }} {{ '%(k)s' % {'k': 1} }}",
            "a is 42, 0.50% x3y 1",
        ),
        (
            "{{ '%d %s' % (messages | length, messages[0].role.upper()) }} {{ '%s' % bos_token | length }}",
            "1 USER 3",
        ),
        (
            "{{ 7 % 3 }} {{ 2 * 7 % 4 }} it's {{ '{{ \"a\" % 3 }}' }}",
            "1 2 it's {{ \"a\" % 3 }}",
        ),
        (
            "{% raw %}{{ 'a' % 3 }}{% endraw %}{# 'a' % 3 #}{% if 'a' %}b{% endif %}",
            "{{ 'a' % 3 }}b",
        ),
    ]);
}

#[test]
fn nested_percent_operators_do_not_exhaust_the_stack() {
    let nested = |depth: usize| {
        let open = "'%s' % (".repeat(depth);
        format!("{{{{ {open}1{} }}}}", ")".repeat(depth))
    };
    assert_eq!(try_render(&nested(5)).as_deref(), Ok("1"));
    assert!(try_render(&nested(100_000)).is_err());
}

#[test]
fn filters_have_the_parameters_of_jinja2() {
    check(&[
        (
            "{{ 'hello world foo' | truncate(9) }} {{ 'hello world foo' | truncate(9, true, '', 0) }} \
             {{ 'hello' | truncate(length=5) }}",
            "hello... hello wor hello",
        ),
        (
            "{{ '<b>a  b</b> &amp; &lt;i&gt;<!-- <c> --> d' | striptags }} {{ \"big-world it's\" | wordcount }}",
            "a b & <i> d 4",
        ),
        (
            "{{ 'a\\n\\nb' | indent('> ', first=True, blank=True) }}|{{ 'a\\nb' | indent(width=2) }}",
            "> a\n> \n> b|a\n  b",
        ),
        (
            "{{ '' | default('d', boolean=True) }} {{ missing | default(none) }} {{ missing | d }}|",
            "d None |",
        ),
        (
            "{{ 'x' | int }} {{ 'ff' | int(base=16) }} {{ '3.9' | int }} {{ 'x' | float(2.5) }} {{ none | int }}",
            "0 255 3 2.5 0",
        ),
        ("{{ 'abc' | center(9) }}|", "   abc   |"),
        (
            "{% set comma = joiner(', ') %}{% for x in [1, 2] %}{{ comma() }}{{ x }}{% endfor %} \
             {% set row = cycler('a', 'b') %}{{ row.next() }}{{ row.next() }}{{ row.next() }}",
            "1, 2 aba",
        ),
        ("{{ 1e20 }} {{ 1e-7 }} {{ 2.50 }}", "1e+20 1e-07 2.5"),
    ]);
}

#[test]
fn padding_runs_out_of_fuel_not_of_memory() {
    for source in [
        "{{ 'a'.zfill(99999999999) }}",
        "{{ 'a'.center(9223372036854775807) }}",
        "{{ '\\t'.expandtabs(99999999999) }}",
        "{{ 'a' | center(99999999999) }}",
        "{{ 'a' | indent(99999999999) }}",
        "{{ [[1]] | tojson(indent=99999999999) }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}\
         {{ ns.x | tojson }}",
    ] {
        let error = try_render(source).unwrap_err();
        assert!(error.contains("ran out of fuel"), "{source}: {error}");
    }
    let deep =
        "{% set ns = namespace(x=1) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor %}";
    let error = try_render(&format!("{deep}{{{{ ns.x | tojson }}}}")).unwrap_err();
    assert!(error.contains("expected at most 200 levels"), "{error}");
}
