//! A corpus as tasks of about equal work, without looking at the number of threads.

use std::ops::Range;

/// Query lanes times document tokens of a task: some hundred microseconds on one core.
const TASK_WORK: usize = 1 << 17;
/// Fewest tokens of a task, however many the query tokens are.
const MIN_TASK_TOKENS: usize = 256;
/// What a document costs beside its tokens, in tokens.
const DOC_TOKENS: usize = 2;

/// Most tokens that one thread takes at once; longer documents are cut into segments of this length.
pub(crate) const SEGMENT_TOKENS: usize = 4096;

/// Cuts `0..len` into consecutive ranges of about equal work; `tokens` is the number of document tokens of an item.
pub(crate) fn tasks(len: usize, num_lanes: usize, tokens: impl Fn(usize) -> usize) -> Vec<Range<usize>> {
    let task_tokens = (TASK_WORK / num_lanes.max(1)).max(MIN_TASK_TOKENS);
    let mut tasks = Vec::new();
    let (mut start, mut work) = (0, 0);
    for item in 0..len {
        work += tokens(item) + DOC_TOKENS;
        if work >= task_tokens {
            tasks.push(start..item + 1);
            (start, work) = (item + 1, 0);
        }
    }
    if start < len {
        tasks.push(start..len);
    }
    tasks
}

/// Segments of a document of `num_tokens` tokens; one when it is short.
pub(crate) fn segments(num_tokens: usize) -> impl Iterator<Item = Range<usize>> {
    (0..num_tokens).step_by(SEGMENT_TOKENS).map(move |start| start..num_tokens.min(start + SEGMENT_TOKENS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_every_item_once_in_order() {
        for len in [0, 1, 2, 1000] {
            let tasks = tasks(len, 32, |item| item * 7 % 900);
            let items: Vec<usize> = tasks.iter().cloned().flatten().collect();
            assert_eq!(items, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_long_document_ends_its_task() {
        let tasks = tasks(10, 32, |item| if item == 4 { 100_000 } else { 20 });
        assert_eq!(tasks, [0..5, 5..10]);
    }

    #[test]
    fn segments_cover_every_token() {
        assert_eq!(segments(0).count(), 0);
        assert_eq!(segments(SEGMENT_TOKENS).count(), 1);
        assert_eq!(segments(SEGMENT_TOKENS + 1).last(), Some(SEGMENT_TOKENS..SEGMENT_TOKENS + 1));
    }
}
