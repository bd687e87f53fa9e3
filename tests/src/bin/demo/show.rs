//! Commands as a person would see them: what was typed, what came, how long it took.
use std::time::{Duration, Instant};
use wherry_tests::{Failure, Outcome, Wherry, wait};

/// Runs commands and shows them.
#[derive(Debug, Clone)]
pub(crate) struct Show {
    pub(crate) cli: Wherry,
}

impl Show {
    pub(crate) fn new(cli: Wherry) -> Self {
        Self { cli }
    }

    /// Tells a step and its time.
    pub(crate) fn step(
        &self,
        number: u8,
        title: &str,
        tell: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        println!("\n{number}. {title}");
        let started = Instant::now();
        tell()?;
        println!("   step {number} took {:.1} s", started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Runs a command that must end with `code`, and shows it.
    pub(crate) fn ends_with(&self, code: i32, arguments: &[&str]) -> Result<Outcome, Failure> {
        let outcome = self.cli.run(arguments)?;
        print(&outcome);
        outcome.expect_code(code)
    }

    /// Runs a command that must succeed, and shows it.
    pub(crate) fn ok(&self, arguments: &[&str]) -> Result<Outcome, Failure> {
        self.ends_with(0, arguments)
    }

    /// Runs a command that must fail, and shows it.
    pub(crate) fn fails(&self, arguments: &[&str]) -> Result<Outcome, Failure> {
        let outcome = self.cli.run(arguments)?;
        print(&outcome);
        if outcome.code == 0 { Err(outcome.failure("should have failed")) } else { Ok(outcome) }
    }

    /// Tries a command until it succeeds and `good` likes what it printed; shows the last one only.
    pub(crate) fn until(
        &self,
        timeout: Duration,
        arguments: &[&str],
        good: impl Fn(&Outcome) -> bool,
    ) -> Result<Outcome, Failure> {
        let what = format!("`wherry {}`", arguments.join(" "));
        let outcome = wait::until(&what, timeout, || match self.cli.run(arguments) {
            Ok(outcome) if outcome.code == 0 && good(&outcome) => Ok(outcome),
            Ok(outcome) => Err(format!("{}{}", outcome.stdout, outcome.stderr)),
            Err(failure) => Err(failure.to_string()),
        })?;
        print(&outcome);
        Ok(outcome)
    }
}

/// Shows a command's outcome.
pub(crate) fn print(outcome: &Outcome) {
    let code = if outcome.code == 0 { String::new() } else { format!(", exit code {}", outcome.code) };
    println!("   $ {}   # {:.2} s{code}", outcome.command, outcome.took.as_secs_f64());
    for line in outcome.stdout.lines().chain(outcome.stderr.lines()) {
        println!("     {line}");
    }
}

/// Says something between commands.
pub(crate) fn remark(text: &str) {
    println!("   {text}");
}
