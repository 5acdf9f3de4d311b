//! Skeleton.

use std::process::ExitCode;

pub fn cli() -> ExitCode {
    ExitCode::SUCCESS
}
