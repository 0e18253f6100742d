//! `uvxlan man`, `uvxlan flags` and `uvxlan completions`: made from the command tree and the
//! flag table, so that they cannot contradict the program.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, Command};
use clap_complete::Shell;

use super::run::flags_page;
use super::{CANT_CREATE, OK, fail, print_out};

/// Arguments of `uvxlan man`.
#[derive(clap::Args, Debug)]
pub(super) struct ManArgs {
    /// Directory to write the pages to: uvxlan.1 and one for each command
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Arguments of `uvxlan completions`.
#[derive(clap::Args, Debug)]
pub(super) struct CompletionsArgs {
    /// Shell to print them for: bash, zsh, fish, elvish, powershell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn man(args: &ManArgs, tree: Command) -> ExitCode {
    match write_pages(&args.directory, tree) {
        Ok(()) => ExitCode::from(OK),
        Err(error) => fail(
            "man",
            CANT_CREATE,
            format_args!(
                "cannot write the pages to {}: {error}",
                args.directory.display()
            ),
        ),
    }
}

fn write_pages(directory: &Path, tree: Command) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let tree = tree.mut_subcommand("run", |run| run.mut_args(lines_as_paragraphs));
    clap_mangen::generate_to(tree, directory)
}

/// Help shows each line of a flag's text by itself; troff would join them.
fn lines_as_paragraphs(flag: Arg) -> Arg {
    match flag.get_long_help() {
        Some(text) => {
            let text = text.to_string().replace('\n', "\n\n");
            flag.long_help(text)
        }
        None => flag,
    }
}

pub(super) fn flags() -> ExitCode {
    print_out(&flags_page::text());
    ExitCode::from(OK)
}

pub(super) fn completions(args: &CompletionsArgs, mut tree: Command) -> ExitCode {
    let name = tree.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut tree, name, &mut text);
    print_out(&String::from_utf8_lossy(&text));
    ExitCode::from(OK)
}
