//! Writes what the package `stokehold` adds to shells: completions and man pages, from the command line
//! itself. `cargo run -p stokehold-cli --example shell -- FOLDER`

use std::path::PathBuf;

use clap::CommandFactory as _;
use clap_complete::Shell;

fn main() -> anyhow::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| anyhow::anyhow!("give the folder to write to"))?;
    std::fs::create_dir_all(&folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut cli::args::Cli::command(), "stokehold", &folder)?;
    }
    clap_mangen::generate_to(cli::args::Cli::command(), &folder)?;
    Ok(())
}
