//! Unobtrusive progress bars: [`Progress`].

use std::{
    borrow::Cow,
    fmt,
    sync::Once,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The time before a bar appears: shorter work does not need one.
const DELAY: Duration = Duration::from_secs(1);

/// A progress bar on standard error. It appears only on a terminal and after one second, and is
/// erased when it ends or is dropped.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    delay: Duration,
    shown: Once,
    target: Box<dyn Fn() -> ProgressDrawTarget + Send + Sync>,
}

impl Progress {
    /// Creates a bar that counts `total` bytes under the title `label`.
    pub fn bytes(label: impl Into<Cow<'static, str>>, total: u64) -> Self {
        // indicatif hides this target if standard error is no terminal.
        Self::on_target(label.into(), total, DELAY, ProgressDrawTarget::stderr)
    }

    fn on_target(
        label: Cow<'static, str>,
        total: u64,
        delay: Duration,
        target: impl Fn() -> ProgressDrawTarget + Send + Sync + 'static,
    ) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} ({eta} left)";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(label);
        Self {
            bar,
            started: Instant::now(),
            delay,
            shown: Once::new(),
            target: Box::new(target),
        }
    }

    /// Adds `bytes` to the count.
    pub fn inc(&self, bytes: u64) {
        if self.started.elapsed() >= self.delay {
            self.shown
                .call_once(|| self.bar.set_draw_target((self.target)()));
        }
        self.bar.inc(bytes);
    }

    /// Returns the number of bytes counted so far.
    pub fn position(&self) -> u64 {
        self.bar.position()
    }

    /// Erases the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Progress").field(&self.position()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use indicatif::TermLike;

    use super::*;

    /// A terminal that records its output.
    #[derive(Clone, Debug, Default)]
    struct Terminal(Arc<Mutex<String>>);

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            120
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            self.0.lock().unwrap().clear();
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn progress(delay: Duration) -> (Progress, Terminal) {
        let terminal = Terminal::default();
        let screen = terminal.clone();
        let target = move || ProgressDrawTarget::term_like(Box::new(screen.clone()));
        (
            Progress::on_target("Loading".into(), 1000, delay, target),
            terminal,
        )
    }

    #[test]
    fn short_work_draws_nothing() {
        let (progress, terminal) = progress(Duration::from_secs(3600));
        progress.inc(600);
        progress.inc(400);
        assert_eq!(progress.position(), 1000);
        assert_eq!(*terminal.0.lock().unwrap(), "");
    }

    #[test]
    fn long_work_draws_a_bar_and_clears_it() {
        let (progress, terminal) = progress(Duration::ZERO);
        progress.inc(500);
        let screen = terminal.0.lock().unwrap().clone();
        assert!(
            screen.contains("Loading [") && screen.contains("500 B/1000 B"),
            "{screen:?}"
        );
        drop(progress);
        assert_eq!(terminal.0.lock().unwrap().trim(), "");
    }
}
