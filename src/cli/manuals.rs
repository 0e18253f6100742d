//! `uvxlan man` and `uvxlan completions`: made from the command tree, so that neither can
//! say something else than the program does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, Command};
use clap_complete::Shell;

/// Arguments of `uvxlan man`.
#[derive(clap::Args, Debug, Clone)]
pub struct ManArgs {
    /// Where the pages are written: uvxlan.1 and one for each command
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Arguments of `uvxlan completions`.
#[derive(clap::Args, Debug, Clone, Copy)]
pub struct CompletionsArgs {
    /// The shell that reads them: bash, zsh, fish, elvish, powershell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Writes the manual pages.
#[must_use]
pub fn man(args: &ManArgs, tree: Command) -> ExitCode {
    match pages(&args.directory, tree) {
        Ok(()) => ExitCode::from(super::OK),
        Err(error) => {
            let directory = args.directory.display();
            super::print_err(&format!(
                "uvxlan man: cannot write pages to {directory}: {error}\n"
            ));
            ExitCode::from(super::CANT_CREATE)
        }
    }
}

fn pages(directory: &Path, tree: Command) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let tree = tree.mut_subcommand("run", |run| run.mut_args(lines_apart));
    clap_mangen::generate_to(tree, directory)
}

/// In help each line of a flag's text stands by itself; a page would fill them into one
/// sentence, were they no paragraphs.
fn lines_apart(flag: Arg) -> Arg {
    match flag.get_long_help() {
        Some(text) => {
            let text = text.to_string().replace('\n', "\n\n");
            flag.long_help(text)
        }
        None => flag,
    }
}

/// Prints completions.
#[must_use]
pub fn completions(args: &CompletionsArgs, mut tree: Command) -> ExitCode {
    let name = tree.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut tree, name, &mut text);
    super::print_out(&String::from_utf8_lossy(&text));
    ExitCode::from(super::OK)
}
