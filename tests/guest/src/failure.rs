// SPDX-License-Identifier: GPL-2.0
//! Why the client gave up: the step, the errno and the SEAMCALL's status.
//!
//! [`Failure`] is the error of every other file; [`Context`] names the step.

use std::fmt;
use vmm_sys_util::errno;

/// A step that failed.
#[derive(Debug)]
pub struct Failure {
    step: String,
    cause: Option<std::io::Error>,
    hw_error: u64,
}

impl Failure {
    /// A failure that no system call reported.
    pub fn new(step: impl Into<String>) -> Self {
        Self {
            step: step.into(),
            cause: None,
            hw_error: 0,
        }
    }

    /// A command of `KVM_MEMORY_ENCRYPT_OP` that failed.
    ///
    /// `hw_error` is the status of the SEAMCALL, 0 if KVM named none.
    pub fn command(step: impl Into<String>, error: errno::Error, hw_error: u64) -> Self {
        Self {
            step: step.into(),
            cause: Some(error.into()),
            hw_error,
        }
    }

    /// The same failure, said of a part: a TD, or a vCPU.
    pub fn of(self, part: impl fmt::Display) -> Self {
        Self {
            step: format!("{part}: {}", self.step),
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.step)?;
        if let Some(cause) = &self.cause {
            write!(f, ": {cause}")?;
        }
        if self.hw_error != 0 {
            write!(f, ", SEAMCALL status {:#018x}", self.hw_error)?;
        }
        Ok(())
    }
}

/// Names the step in which an error came up.
pub trait Context<T> {
    /// # Errors
    ///
    /// The error as a [`Failure`] of `step`.
    fn step(self, step: &str) -> Result<T, Failure>;
}

impl<T, E: Into<std::io::Error>> Context<T> for Result<T, E> {
    fn step(self, step: &str) -> Result<T, Failure> {
        self.map_err(|e| Failure {
            step: step.into(),
            cause: Some(e.into()),
            hw_error: 0,
        })
    }
}
