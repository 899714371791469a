//! The figures that a run on a large GPU is asked for, by name, with what is asked beside what was measured.

use super::{Ceilings, CorpusRun, Row, Work};
use crate::DType;

/// A figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// What it is.
    pub name: &'static str,
    /// Its unit; empty for shares.
    pub unit: &'static str,
    /// None if its row was not run.
    pub measured: Option<f64>,
    /// What is asked: of times at most this, of rates and shares at least. None where a number is all that is asked.
    pub asked: Option<f64>,
    /// Whether less is better.
    pub is_time: bool,
    /// Where what is asked comes from, and what else the number is.
    pub note: &'static str,
}

impl Figure {
    /// Whether it is as asked; none if either number is missing.
    pub fn is_met(&self) -> Option<bool> {
        let (measured, asked) = (self.measured?, self.asked?);
        Some(if self.is_time { measured <= asked } else { measured >= asked })
    }
}

/// Figures from rows; those of `maxsim` are of the full inputs, and quick runs have none.
pub fn figures(rows: &[Row], ceilings: &Ceilings, corpus: Option<&CorpusRun>) -> Vec<Figure> {
    let row = |name: &str, shape: &str| rows.iter().find(|row| row.name == name && row.shape.starts_with(shape));
    let maxsim = |shape| row("maxsim", shape);
    let ms = |row: Option<&Row>| row.map(|row| 1e3 * row.timing.median);
    let share_of_copy = |row: Option<&Row>| row.map(|row| row.bandwidth() / ceilings.bandwidth);
    let share_of_matrix = |row: Option<&Row>| Some(row?.flops()? / ceilings.matrix?.0);
    let floor = |row: Option<&Row>| row.map(|row| ceilings.floor(&row.work, DType::F16) / row.timing.median);
    let (small, large) =
        (maxsim("1 x 32 tokens, 1000 docs x 300, f16"), maxsim("1 x 32 tokens, 10000 docs x 300, f16"));
    let (in_batch, pages) =
        (maxsim("128 x 32 tokens, 128 docs x 300, f16"), maxsim("1 x 1024 tokens, 1000 docs x 1024, f16"));
    let ragged = maxsim("1 x 32 tokens, 1000 docs x 1-5");
    let even = |name: &str| rows.iter().find(|row| row.name == name && row.shape.contains("of 180, f16"));
    let any_ragged = |name: &str| rows.iter().find(|row| row.name == name && row.shape.contains("of 33-300, f16"));
    let time = |name, measured, asked, note| Figure { name, unit: "ms", measured, asked, is_time: true, note };
    let rate = |name, unit, measured, asked, note| Figure { name, unit, measured, asked, is_time: false, note };
    let per_second = |row: Option<&Row>| row.map(|row| row.work.tokens as f64 / row.timing.median);
    let seconds = |name, measured, asked, note| Figure { name, unit: "s", measured, asked, is_time: true, note };
    let mut figures = vec![
        time("maxsim_1k_ms", ms(small), Some(0.030), "published: 0.063 on an H100"),
        time("maxsim_10k_ms", ms(large), Some(0.18), "published: 0.245 on an H100"),
        time("maxsim_in_batch_ms", ms(in_batch), None, "published: 0.213 on an H100"),
        time("maxsim_colpali_ms", ms(pages), Some(0.45), "published: 0.568 on an H100"),
        rate("maxsim_10k_share_of_copy", "", share_of_copy(large), None, "published: 0.94"),
        rate("maxsim_ragged_share_of_copy", "", share_of_copy(ragged), Some(0.5), "published: 0.075 on an A100"),
        rate("maxsim_in_batch_share_of_matrix", "", share_of_matrix(in_batch), Some(0.4), "published: 0.19"),
        rate("maxsim_colpali_share_of_matrix", "", share_of_matrix(pages), None, "published: 0.48"),
        rate("gram_floor_share", "", floor(any_ragged("gram")), Some(0.6), "of the larger of copying and computing"),
        rate("gram_floor_share_n180", "", floor(even("gram")), Some(0.6), "the same for documents of 180 tokens"),
        rate("dominance_decisions_per_second", "1/s", per_second(any_ragged("dominance")), None, "33 to 300 tokens"),
        rate("dominance_decisions_per_second_n180", "1/s", per_second(even("dominance")), Some(2e8), "180 tokens"),
    ];
    let stages = corpus.map(|corpus| corpus.stages.named());
    let names = [
        "corpus_read_s",
        "corpus_pack_s",
        "corpus_upload_s",
        "corpus_gram_s",
        "corpus_selection_s",
        "corpus_download_s",
        "corpus_decode_s",
        "corpus_proof_s",
        "corpus_write_s",
    ];
    // A million documents of 180 tokens in ten seconds.
    figures.push(seconds("corpus_s", corpus.map(|corpus| corpus.seconds), None, "stages overlap in it"));
    figures.push(rate(
        "corpus_tokens_per_second",
        "1/s",
        corpus.map(|corpus| corpus.num_tokens as f64 / corpus.seconds),
        Some(1.8e7),
        "from host memory, proven",
    ));
    for (place, name) in names.into_iter().enumerate() {
        figures.push(seconds(name, stages.map(|stages| stages[place].1), None, "alone"));
    }
    figures
}

impl Ceilings {
    /// Seconds below which nothing that does this work can be: what must move at the speed of a copy, or what must be
    /// computed at that of multiply-adds (of matrix products for 16-bit and 8-bit tokens, where the device has them),
    /// whichever takes longer.
    pub fn floor(&self, work: &Work, dtype: DType) -> f64 {
        let moved = work.bytes as f64 / self.bandwidth;
        let flops = match (dtype, self.matrix) {
            (DType::F32, _) => Some(self.flops),
            // Of other matrix instructions the rate is not known.
            (_, matrix) => matrix.map(|(flops, _)| flops),
        };
        let computed = work.flop.zip(flops).map_or(0.0, |(flop, flops)| flop as f64 / flops);
        moved.max(computed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Timing;
    use super::*;

    fn timing(median: f64) -> Timing {
        Timing { median, least: median, most: median, deviation: 0.0, num_repeats: 1, num_launches: 1 }
    }

    #[test]
    fn a_figure_is_met_by_short_times_and_large_shares() {
        let row = |shape: &str, median, bytes| Row {
            name: "maxsim",
            shape: shape.into(),
            work: Work { bytes, flop: Some(1000), tokens: 10 },
            difference: (0.0, 0.0),
            timing: timing(median),
            cold: None,
        };
        let rows = [
            row("1 x 32 tokens, 10000 docs x 300, f16", 2e-4, 400_000_000),
            row("1 x 32 tokens, 1000 docs x 300, f16", 2e-5, 1000),
        ];
        let ceilings = Ceilings { bandwidth: 2.5e12, flops: 1e13, copy: timing(1.0), fma: timing(1.0), matrix: None };
        let figures = figures(&rows, &ceilings, None);
        let figure = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap();
        assert_eq!(figure("maxsim_10k_ms").is_met(), Some(false));
        assert_eq!(figure("maxsim_1k_ms").is_met(), Some(true));
        assert_eq!(figure("maxsim_10k_share_of_copy").is_met(), None);
        assert!((figure("maxsim_10k_share_of_copy").measured.unwrap() - 0.8).abs() < 1e-9);
        assert_eq!((figure("corpus_s").measured, figure("corpus_s").is_met()), (None, None));
        let mut names: Vec<&str> = figures.iter().map(|figure| figure.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), figures.len());
    }
}
