//! Figures.
use std::time::Duration;

pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Samples of one thing.
#[derive(Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn push(&mut self, time: Duration) {
        let place = self.0.partition_point(|have| *have < time);
        self.0.insert(place, time);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In milliseconds; 50 percent is the median.
    pub fn at(&self, percent: usize) -> f64 {
        milliseconds(self.0[(self.0.len() - 1) * percent / 100])
    }

    pub fn median(&self) -> f64 {
        self.at(50)
    }

    pub fn shown(&self) -> String {
        let [middle, low, high] = [50, 10, 90].map(|percent| self.at(percent));
        format!("median {middle:6.2} ms, 10 % {low:6.2}, 90 % {high:6.2}")
    }
}
