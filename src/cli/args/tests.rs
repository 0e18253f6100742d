use super::*;

fn interpret_words(words: &[&str]) -> Action {
    interpret(words.iter().map(OsString::from), [])
}

fn refusal_of(words: &[&str]) -> (String, u8) {
    match interpret_words(words) {
        Action::Refuse(text, code) => (text, code),
        other => panic!("{words:?}: {other:?}"),
    }
}

fn answer_to(words: &[&str]) -> String {
    match interpret_words(words) {
        Action::Print(text) => text,
        other => panic!("{words:?}: {other:?}"),
    }
}

#[test]
fn the_command_tree_is_sound() {
    command().debug_assert();
}

#[test]
fn called_as_flanneld_everything_goes_to_run() {
    for program in [
        "flanneld",
        "/opt/kubernetes/bin/flanneld",
        "./flanneld-amd64",
    ] {
        match interpret_words(&[program, "-etcd-prefix=/a", "demo"]) {
            Action::Run(options) => assert_eq!(options.store.etcd.prefix, "/a"),
            other => panic!("{program}: {other:?}"),
        }
        assert!(
            matches!(interpret_words(&[program]), Action::Run(_)),
            "{program}"
        );
    }
    let (text, code) = refusal_of(&["/bin/flanneld", "--ip-masque"]);
    assert_eq!(code, USAGE);
    assert!(
        text.starts_with("flanneld: unknown flag --ip-masque"),
        "{text}"
    );
}

#[test]
fn each_command_is_recognised() {
    let run = interpret_words(&["uvxlan", "run", "--iface=eth0"]);
    assert!(matches!(run, Action::Run(options) if options.iface == ["eth0"]));
    let down = interpret_words(&["uvxlan", "down"]);
    assert!(matches!(down, Action::Command(CliCommand::Down(args)) if args.vni == 1));
    let down = interpret_words(&["uvxlan", "down", "--vni=4096"]);
    assert!(matches!(down, Action::Command(CliCommand::Down(args)) if args.vni == 4096));
    let (text, code) = refusal_of(&["uvxlan", "down", "--vni=16777216"]);
    assert_eq!(code, USAGE);
    assert!(text.contains("16777215"), "{text}");
}

#[test]
fn an_unknown_command_names_the_nearest() {
    for (word, nearest) in [
        ("dwon", "down"),
        ("rnu", "run"),
        ("docker-opt", "docker-opts"),
    ] {
        let (text, code) = refusal_of(&["uvxlan", word]);
        assert_eq!(code, USAGE);
        assert!(text.contains(&format!("'uvxlan {nearest}'?")), "{text}");
    }
    let (text, _) = refusal_of(&["uvxlan", "zzzzzzzz"]);
    assert!(!text.contains("did you mean"), "{text}");
}

#[test]
fn nothing_to_do_is_wrong_usage_with_short_help() {
    for words in [&[][..], &["uvxlan"]] {
        let (text, code) = refusal_of(words);
        assert_eq!(code, USAGE);
        assert!(text.contains("Usage: uvxlan <COMMAND>"), "{text}");
    }
}

#[test]
fn a_flag_without_command_is_led_to_run_without_its_value() {
    for word in [
        "-etcd-password=hunter2",
        " --etcd-password=hunter2 --ip-masq",
    ] {
        let (text, code) = refusal_of(&["uvxlan", word]);
        assert_eq!(code, USAGE);
        assert!(
            text.contains("did you mean 'uvxlan run --etcd-password …'?"),
            "{text}"
        );
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn version_is_one_line_everywhere() {
    let expected = format!("uvxlan {}\n", version());
    let spellings: [&[&str]; 6] = [
        &["uvxlan", "--version"],
        &["uvxlan", "-version"],
        &["uvxlan", "-V"],
        &["uvxlan", "run", "--version"],
        &["flanneld", "-version"],
        &["flanneld", "--ip-masq", "--version"],
    ];
    for spelling in spellings {
        assert_eq!(answer_to(spelling), expected, "{spelling:?}");
    }
    assert!(expected.starts_with(concat!("uvxlan ", env!("CARGO_PKG_VERSION"), " (")));
}

#[test]
fn help_names_every_flag_once_and_no_hidden_one() {
    let spellings: [&[&str]; 5] = [
        &["uvxlan", "run", "-h"],
        &["uvxlan", "run", "--help"],
        &["uvxlan", "run", "-help"],
        &["uvxlan", "help", "run"],
        &["flanneld", "--help"],
    ];
    for spelling in spellings {
        let text = answer_to(spelling);
        // A flag's own entry begins a line; other texts may name it too.
        let entry = |line: &str| {
            let line = line.trim_start();
            line.starts_with('-').then(|| {
                let words = line.split_ascii_whitespace();
                let dashed = words.take_while(|word| word.starts_with('-'));
                dashed
                    .map(|word| word.trim_end_matches(',').to_owned())
                    .collect::<Vec<_>>()
            })
        };
        let examples = text.find("Examples:").unwrap_or(text.len());
        let entries: Vec<String> = text[..examples]
            .lines()
            .filter_map(entry)
            .flatten()
            .collect();
        for flag in flags::FLAGS {
            let count = entries
                .iter()
                .filter(|name| **name == flag.dashed())
                .count();
            assert_eq!(
                count,
                usize::from(!flag.hidden),
                "{} in {spelling:?}",
                flag.name
            );
        }
        assert!(!text.contains("lease-ttl"), "{spelling:?}");
    }
}

#[test]
fn long_help_has_headings_in_order_and_examples() {
    let text = answer_to(&["uvxlan", "run", "--help"]);
    let headings = flags::Group::ALL.map(|group| format!("{}:", group.heading()));
    let parts = headings.iter().map(String::as_str).chain(["Examples:"]);
    let places: Vec<_> = parts
        .map(|part| text.find(&format!("\n{part}\n")))
        .collect();
    assert!(places.iter().all(Option::is_some), "{places:?}");
    assert!(places.is_sorted(), "{places:?}");
    assert!(text.contains("FLANNELD_ETCD_ENDPOINTS") && text.contains("UVXLAN_STORE"));
    assert!(answer_to(&["flanneld", "-h"]).contains("Usage: flanneld [OPTIONS]"));
}

#[test]
fn examples_of_the_help_are_valid() {
    let text = answer_to(&["uvxlan", "run", "--help"]).replace("\\\n", " ");
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("uvxlan run"));
    let mut seen = 0;
    for line in lines {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        assert!(matches!(interpret_words(&words), Action::Run(_)), "{line}");
        seen += 1;
    }
    assert_eq!(seen, 3, "examples found");
}

#[test]
fn program_help_lists_commands_and_examples() {
    let text = answer_to(&["uvxlan", "--help"]);
    for part in [
        "A drop-in replacement for flannel",
        "  run ",
        "  docker-opts ",
        "  demo ",
        "  down ",
        "Examples:",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!answer_to(&["uvxlan", "-h"]).contains("Examples:"));
    assert_eq!(answer_to(&["uvxlan", "help"]), text);
}
