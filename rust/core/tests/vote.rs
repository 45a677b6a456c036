//! Votes against a naive count, one question and many.
#![allow(clippy::unwrap_used)]

mod oracle;

use std::hash::{Hash, Hasher};

use deepconf_core::Error;
use deepconf_core::vote::{
    Ballot, Integers, Key, Keys, Rules, Vote, Votes, percentile, vote, vote_columns, vote_many,
};
use oracle::{Dice, Tally};
use proptest::prelude::*;

const NAN: f64 = f64::NAN;

/// One question's traces.
#[derive(Clone, Debug)]
struct Question {
    answers: Vec<Option<u8>>,
    weights: Option<Vec<f64>>,
    scores: Option<Vec<f64>>,
    keep: f64,
    min_ballots: usize,
    over_all: bool,
}

impl Question {
    fn random(dice: &mut Dice) -> Self {
        let n = dice.below(30);
        let eighths = |dice: &mut Dice| dice.below(80) as f64 / 8.0;
        let weights =
            dice.pick(&[true, true, false]).then(|| (0..n).map(|_| eighths(dice)).collect());
        let score = |dice: &mut Dice| if dice.below(8) == 0 { NAN } else { eighths(dice) - 2.0 };
        let keep = dice.pick(&[1.0, 0.1, 0.5, 0.9, 0.001, 0.37]);
        let scores = (keep < 1.0 && weights.is_none() || dice.below(2) == 0)
            .then(|| (0..n).map(|_| score(dice)).collect());
        Self {
            answers: (0..n)
                .map(|_| dice.pick(&[None, Some(1), Some(2), Some(3), Some(2)]))
                .collect(),
            weights,
            scores,
            keep,
            min_ballots: dice.below(5),
            over_all: dice.below(2) == 0,
        }
    }

    fn rules(&self) -> Rules<'_> {
        Rules::default()
            .weights(self.weights.as_deref())
            .keep(self.keep)
            .scores(self.scores.as_deref())
            .min_ballots(self.min_ballots)
            .over_all(self.over_all)
    }

    fn naive(&self) -> Tally {
        let ones = vec![1.0; self.answers.len()];
        let weights = self.weights.as_deref().unwrap_or(&ones);
        let scores = self.scores.as_deref().or(self.weights.as_deref());
        oracle::vote(&self.answers, weights, scores, self.keep, self.min_ballots, self.over_all)
    }
}

fn assert_same(vote: &Vote, tally: &Tally) {
    let ballots: Vec<_> = vote.ballots.iter().map(|b| (b.first, b.weight, b.voters)).collect();
    assert_eq!(ballots, tally.ballots);
    assert_eq!((vote.share, vote.num_voters), (tally.share, tally.voters.len()));
    assert_eq!((vote.threshold, vote.fallback), (tally.threshold, tally.fallback));
}

fn majority<'a>() -> Rules<'a> {
    Rules::default()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_vote_is_the_naive_count(seed in any::<u64>()) {
        let question = Question::random(&mut Dice(seed));
        assert_same(&vote(&question.answers, &question.rules()).unwrap(), &question.naive());
    }

    #[test]
    fn percentiles_are_the_oracles_and_stay_within(values in prop::collection::vec(-50.0_f64..50.0, 0..40), q in 0.0_f64..=100.0) {
        let got = percentile(&mut values.clone(), q);
        prop_assert_eq!(got, oracle::percentile(&values, q));
        if let Some(got) = got {
            let (low, high) = (values.iter().copied().fold(f64::MAX, f64::min), values.iter().copied().fold(f64::MIN, f64::max));
            prop_assert!(low <= got && got <= high);
        }
    }
}

/// A text whose hash says next to nothing: most of them collide.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Colliding(String);

impl Hash for Colliding {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u8(self.0.len() as u8 % 2);
    }
}

/// Texts one after the other, as Arrow has them; each third is missing when `gaps`, and there are two
/// hashes in all when `colliding`.
struct Texts {
    buffer: Vec<u8>,
    ends: Vec<usize>,
    gaps: bool,
    colliding: bool,
}

impl Texts {
    fn new(texts: &[String], gaps: bool) -> Self {
        let mut ends = vec![0];
        ends.extend(texts.iter().scan(0, |end, text| {
            *end += text.len();
            Some(*end)
        }));
        Self { buffer: texts.concat().into_bytes(), ends, gaps, colliding: false }
    }

    fn text(&self, row: usize) -> Option<&[u8]> {
        let there = !(self.gaps && row % 3 == 2);
        there.then(|| &self.buffer[self.ends[row]..self.ends[row + 1]])
    }
}

impl Keys for Texts {
    fn rows(&self) -> usize {
        self.ends.len() - 1
    }

    fn keys(&self, rows: std::ops::Range<usize>, out: &mut Vec<Key>) {
        out.extend(rows.map(|row| {
            let text = self.ends[row]..self.ends[row + 1];
            let key = if self.colliding {
                Key::hash(text.len() % 2)
            } else {
                Key::text(&self.buffer, text)
            };
            key.unless(self.text(row).is_none())
        }));
    }

    fn same(&self, left: usize, right: usize) -> bool {
        self.text(left) == self.text(right)
    }

    fn text(&self, row: usize) -> Option<&[u8]> {
        self.text(row)
    }
}

/// In which order the rows of questions come.
#[derive(Clone, Copy, Debug)]
enum Order {
    Grouped,
    Blocks,
    Shuffled,
}

fn questions(dice: &mut Dice, n: usize, distinct: usize, order: Order) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..n).map(|_| dice.below(distinct)).collect();
    match order {
        Order::Grouped => numbers.sort_unstable(),
        Order::Blocks => (0..n).for_each(|row| numbers[row] = numbers[row - row % 40]),
        Order::Shuffled => {}
    }
    numbers
}

/// Each question's vote by the naive count.
fn assert_each<Q: Eq + Hash, A: Eq + Clone>(
    votes: &Votes,
    questions: &[Q],
    answers: &[Option<A>],
    rules: &Rules<'_>,
) {
    let groups = oracle::rows_by_question(questions);
    assert_eq!(votes.question_rows, groups.iter().map(|rows| rows[0]).collect::<Vec<_>>());
    for (i, rows) in groups.iter().enumerate() {
        let pick = |column: &[f64]| rows.iter().map(|&row| column[row]).collect::<Vec<_>>();
        let weights = rules.weights.map_or_else(|| vec![1.0; rows.len()], pick);
        let scores = rules.scores.or(rules.weights).map(pick);
        let answers: Vec<_> = rows.iter().map(|&row| answers[row].clone()).collect();
        let (scores, floor) = (scores.as_deref(), rules.min_ballots);
        let tally = oracle::vote(&answers, &weights, scores, rules.keep, floor, rules.over_all);
        let winner = tally.ballots.first().map(|&(first, ..)| rows[first]);
        assert_eq!(votes.answer_rows[i], winner);
        assert_eq!(votes.share[i].to_bits(), tally.share.to_bits());
        assert_eq!(votes.num_voters[i], tally.voters.len());
        assert_eq!(votes.fallback[i], tally.fallback);
    }
}

fn on<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// Columns of `n` rows; few rows and many, few questions and many, few answers and many.
fn assert_many(seed: u64, n: usize, order: Order) {
    let mut dice = Dice(seed);
    let distinct = dice.pick(&[1, 2, 20, 1 + n / 100, 1 + n / 5]);
    let numbers = questions(&mut dice, n, distinct, order);
    let variety = dice.pick(&[2, 5, 16, 17, 18, 60]);
    let longest = "too long for the line of a cache, in which shorter ones are kept: ";
    let pads = [
        dice.pick(&["", "q", "a long question ", longest]),
        dice.pick(&["", "a", "a long answer: ", longest]),
    ];
    // Of the same width they rise as their numbers do.
    let (pad, width) = (pads[0], dice.pick(&[0, 6]));
    let asked: Vec<String> =
        numbers.iter().map(|number| format!("{pad}{number:0width$}")).collect();
    let given: Vec<String> =
        (0..n).map(|_| format!("{}{}", pads[1], dice.below(variety))).collect();
    // Sums of these depend on their order.
    let weights: Vec<f64> = (0..n).map(|_| dice.unit() * 30.0).collect();
    let scores: Vec<f64> =
        (0..n).map(|_| if dice.below(9) == 0 { NAN } else { dice.unit() }).collect();
    let weighted = dice.below(3) > 0;
    let rules = Rules::default()
        .weights(weighted.then_some(&weights))
        .keep(dice.pick(&[1.0, 0.5, 0.1]))
        .scores((!weighted || dice.below(2) == 0).then_some(&scores))
        .min_ballots(dice.below(4))
        .over_all(dice.below(2) == 0);
    let answers: Vec<Option<&str>> =
        given.iter().enumerate().map(|(row, a)| (row % 3 != 2).then_some(a.as_str())).collect();
    let mut texts = (Texts::new(&asked, false), Texts::new(&given, true));
    let columns = || vote_columns(&texts.0, &texts.1, &rules).unwrap();
    let votes = on(1, columns);
    assert_each(&votes, &asked, &answers, &rules);
    for threads in [2, 3, 8] {
        assert_eq!(on(threads, columns), votes, "{threads} threads");
    }
    assert_eq!(vote_many(&asked, &answers, &rules).unwrap(), votes, "slices");
    let colliding = (
        asked.iter().cloned().map(Colliding).collect::<Vec<_>>(),
        answers.iter().map(|a| a.map(|a| Colliding(a.into()))).collect::<Vec<_>>(),
    );
    // A table of collisions is searched row by row: few are enough.
    if distinct * n < 1_000_000 {
        assert_eq!(vote_many(&colliding.0, &colliding.1, &rules).unwrap(), votes, "collisions");
        (texts.0.colliding, texts.1.colliding) = (true, true);
        let votes_of_texts = vote_columns(&texts.0, &texts.1, &rules).unwrap();
        assert_eq!(votes_of_texts, votes, "collisions of texts");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn many_votes_are_each_questions_vote(seed in any::<u64>(), n in 0_usize..600) {
        for order in [Order::Grouped, Order::Blocks, Order::Shuffled] {
            assert_many(seed, n, order);
        }
    }

    #[test]
    fn short_texts_are_their_keys(texts in prop::collection::vec("[a\\x00é]{0,18}", 2..6), at in 0_usize..4) {
        let column = Texts::new(&texts, false);
        let mut keys = Vec::new();
        column.keys(0..texts.len(), &mut keys);
        let at = at % texts.len();
        for (other, text) in texts.iter().enumerate() {
            prop_assert_eq!(keys[other].is_whole(), text.len() <= 15);
            prop_assert_eq!(keys[other] == keys[at], *text == texts[at]);
            prop_assert_eq!(keys[other], Key::text(text.as_bytes(), 0..text.len()));
            let padded = text.bytes().rev().fold(0, |all, b| all << 8 | u128::from(b));
            if text.len() <= 15 {
                prop_assert_eq!(keys[other], Key::padded(padded, text.len() as u8));
            }
            prop_assert!(keys[other] != Key::MISSING && keys[other].unless(true) == Key::MISSING);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// Enough rows for several chunks and parts.
    #[test]
    fn many_rows_vote_as_few_do(seed in any::<u64>(), n in 70_000_usize..150_000) {
        for order in [Order::Grouped, Order::Blocks, Order::Shuffled] {
            assert_many(seed, n, order);
        }
    }
}

/// Texts that rise stand together, unless one comes back: in the last row, of a first or a later stretch.
#[test]
fn questions_that_rise_and_come_back_are_told_apart() {
    let rows = 70_000;
    for (pad, each) in [("", 25), ("", rows), ("a question of many words ", 7), ("another ", 1)] {
        let name = |row: usize| match row / each {
            0 => String::new(),
            at => format!("{pad}{at:06}"),
        };
        let mut asked: Vec<String> = (0..rows).map(name).collect();
        let given: Vec<i64> = (0..rows as i64).map(|row| row % 11 % 3).collect();
        let (given, answers) =
            (Integers(&given), given.iter().copied().map(Some).collect::<Vec<_>>());
        let scores: Vec<f64> = (0..rows).map(|row| (row * 7_919 % 1_000) as f64).collect();
        let rules = majority().scores(Some(&scores)).keep(0.5);
        for last in [rows - 1, 3, 40_000] {
            asked[rows - 1] = name(last);
            let columns = || vote_columns(&Texts::new(&asked, false), &given, &rules).unwrap();
            let votes = on(3, columns);
            assert_each(&votes, &asked, &answers, &rules);
            assert_eq!(vote_many(&asked, &answers, &rules).unwrap(), votes);
        }
    }
}

/// A bad weight or score far from the start is found, and it is the first.
#[test]
fn the_first_bad_row_of_many_is_named() {
    let n = 200_000;
    let answers: Vec<Option<usize>> =
        (0..n).map(|row| (row != 90_000).then_some(row % 7)).collect();
    let asked: Vec<usize> = (0..n).map(|row| row / 50).collect();
    let mut column = vec![1.0; n];
    for row in [90_000, 140_000, 150_000, 199_999] {
        column[row] = f64::INFINITY;
    }
    let rules = majority().weights(Some(&column));
    let error = vote_many(&asked, &answers, &rules).unwrap_err();
    assert!(matches!(error, Error::Weight { position: 140_000, .. }), "{error}");
    let rules = majority().scores(Some(&column)).keep(0.5);
    let message = vote_many(&asked, &answers, &rules).unwrap_err().to_string();
    assert!(message.starts_with("scores holds inf at position 90000:"), "{message}");
}

/// Such rows vote on nothing, wherever they stand.
#[test]
fn a_row_without_a_question_counts_for_none() {
    let asked = ["q", "q", "gap", "p", "p", "gap", "q"].map(String::from);
    let given = ["a", "b", "gap", "b", "c", "gap", "b"].map(String::from);
    let votes =
        vote_columns(&Texts::new(&asked, true), &Texts::new(&given, true), &majority()).unwrap();
    assert_eq!(votes.question_rows, [0, 3]);
    assert_eq!(votes.answer_rows, [Some(1), Some(3)]);
    assert_eq!(votes.num_voters, [3, 2]);
}

#[test]
fn ties_go_to_the_answer_seen_first() {
    let tied = vote(&[None, Some("b"), Some("a"), Some("a"), Some("b")], &majority()).unwrap();
    let ballot = |first| Ballot::new(first, 2.0, 2);
    assert_eq!(tied.ballots, [ballot(1), ballot(2)]);
    assert_eq!((tied.share, tied.num_voters), (0.5, 4));
    // Seen first among those kept: trace 0 is filtered out.
    let (scores, answers) = ([1.0, 5.0, 5.0], [Some("a"), Some("b"), Some("a")]);
    let kept = vote(&answers, &majority().keep(0.5).scores(Some(&scores))).unwrap();
    assert_eq!(kept.winner().unwrap().first, 1);
}

#[test]
fn nobody_votes() {
    for answers in [&[][..], &[None], &[None, None, None]] {
        let weights = vec![1.0; answers.len()];
        for keep in [1.0, 0.5] {
            let rules = majority().weights(Some(&weights)).keep(keep);
            let vote = vote::<&str>(answers, &rules).unwrap();
            assert_eq!((vote.winner(), vote.num_voters, vote.share), (None, 0, 0.0));
            assert_eq!((vote.threshold, vote.fallback), (None, keep < 1.0));
        }
    }
    let none = vote_many::<&str, &str>(&[], &[], &majority()).unwrap();
    assert_eq!(none, Default::default());
    let silent = vote_many::<_, &str>(&["q", "q"], &[None, None], &majority()).unwrap();
    assert_eq!((silent.answer_rows, silent.share), (vec![None], vec![0.0]));
}

#[test]
fn zero_weights_count_as_voters() {
    let answers = [Some("a"), Some("b"), Some("b")];
    let all_zero = vote(&answers, &majority().weights(Some(&[0.0; 3]))).unwrap();
    assert_eq!(
        (all_zero.winner().unwrap().first, all_zero.share, all_zero.num_voters),
        (0, 0.0, 3)
    );
    let one = vote(&answers, &majority().weights(Some(&[0.0, 0.0, 2.0]))).unwrap();
    assert_eq!((one.winner().unwrap().first, one.share), (1, 1.0));
}

#[test]
fn a_trace_without_a_score_never_votes() {
    let answers = [Some("a"), Some("a"), Some("b"), Some("a")];
    let scores = [NAN, 1.0, 9.0, NAN];
    let rules = majority().keep(0.5).scores(Some(&scores));
    let kept = vote(&answers, &rules).unwrap();
    assert_eq!((kept.threshold, kept.num_voters, kept.fallback), (Some(5.0), 1, false));
    // Not when the filter is given up either.
    let fallen = vote(&answers, &rules.min_ballots(2)).unwrap();
    assert_eq!((fallen.num_voters, fallen.winner().unwrap().first, fallen.fallback), (2, 1, true));
    let none = vote(&answers, &rules.scores(Some(&[NAN; 4]))).unwrap();
    assert_eq!((none.threshold, none.num_voters, none.fallback), (None, 0, true));
}

#[test]
fn too_few_ballots_give_the_filter_up() {
    let answers = [Some("a"), Some("b"), Some("b"), None];
    let scores = [9.0, 2.0, 1.0, 8.0];
    let rules = majority().keep(0.25).scores(Some(&scores)).min_ballots(1);
    let one = vote(&answers, &rules).unwrap();
    assert_eq!((one.num_voters, one.fallback, one.threshold), (1, false, Some(5.5)));
    let all = vote(&answers, &rules.min_ballots(2)).unwrap();
    assert_eq!((all.num_voters, all.fallback, all.winner().unwrap().first), (3, true, 1));
}

#[test]
fn the_percentile_may_count_traces_without_an_answer() {
    let answers = [Some("a"), Some("b"), None, None];
    let scores = [1.0, 2.0, 8.0, 9.0];
    let rules = majority().keep(0.5).scores(Some(&scores)).min_ballots(0);
    let answered = vote(&answers, &rules).unwrap();
    assert_eq!((answered.threshold, answered.num_voters), (Some(1.5), 1));
    let all = vote(&answers, &rules.over_all(true)).unwrap();
    assert_eq!((all.threshold, all.num_voters, all.fallback), (Some(5.0), 0, false));
}

/// As `numpy.percentile(values, q)` gave it.
#[test]
fn percentiles_are_numpys() {
    let few = [3.25, 1.5, 9.75, 4.0];
    let many = [0.1, 0.7, 0.2, 0.9, 0.4, 0.3, 0.8];
    let table: [(&[f64], f64, f64); 12] = [
        (&few, 0.0, 1.5),
        (&few, 100.0, 9.75),
        (&few, 50.0, 3.625),
        (&few, 90.0, 8.025),
        (&few, 9.999999999999998, 2.025),
        (&many, 0.0, 0.1),
        (&many, 100.0, 0.9),
        (&many, 50.0, 0.4),
        (&many, 90.0, 0.8400000000000001),
        (&many, 9.999999999999998, 0.16),
        (&many, 33.3, 0.29979999999999996),
        (&[7.5], 42.0, 7.5),
    ];
    for (values, q, expected) in table {
        assert_eq!(percentile(&mut values.to_vec(), q), Some(expected), "{values:?} at {q}");
    }
    assert_eq!(percentile(&mut [], 90.0), None);
}

#[test]
fn wrong_rules_are_named() {
    let answers = [Some("a"), None, Some("b")];
    let (three, two) = ([1.0, 2.0, 3.0], [1.0, 2.0]);
    let infinite = [1.0, f64::INFINITY, 3.0];
    let filter = |scores| majority().keep(0.5).scores(Some(scores));
    let wrong = [
        (filter(&three).keep(0.0), "keep=0: must be a fraction"),
        (filter(&three).keep(-0.1), "keep=-0.1:"),
        (filter(&three).keep(1.000_001), "keep=1.000001:"),
        (filter(&three).keep(NAN), "keep=NaN:"),
        (majority().keep(0.5), "keep=0.5: a filter needs scores"),
        (majority().weights(Some(&two)), "weights has 2 entries and answers has 3"),
        (majority().scores(Some(&two)), "scores has 2 entries and answers has 3"),
        (filter(&infinite), "scores holds inf at position 1:"),
    ];
    for (rules, expected) in wrong {
        let message = vote(&answers, &rules).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
        let many = vote_many(&["q"; 3], &answers, &rules).unwrap_err().to_string();
        assert_eq!(many, message);
    }
    let lengths = vote_many(&["q"; 2], &answers, &majority()).unwrap_err();
    assert!(matches!(lengths, Error::Length { left: "answers", left_len: 3, right_len: 2, .. }));
}

#[test]
fn wrong_weights_are_named_unless_they_carry_no_vote() {
    for bad in [-1.0, NAN, f64::INFINITY, f64::NEG_INFINITY, -1e-300] {
        let weights = [1.0, bad, 2.0];
        let rules = majority().weights(Some(&weights));
        for error in [
            vote(&[Some("a"), Some("a"), Some("b")], &rules).unwrap_err(),
            vote_many(&[1, 2, 1], &[Some("a"), Some("a"), Some("b")], &rules).unwrap_err(),
        ] {
            let Error::Weight { position: 1, value } = error else { panic!("{error}") };
            assert_eq!(value.to_bits(), bad.to_bits());
        }
        // No answer, no vote: its weight is never read.
        assert_eq!(vote(&[Some("a"), None, Some("b")], &rules).unwrap().num_voters, 2);
    }
    assert!(vote(&[Some(1)], &majority().weights(Some(&[-0.0]))).is_ok());
}

#[test]
fn sums_of_the_largest_weights_are_finite() {
    let answers = [Some("a"), Some("a"), Some("b")];
    let vote_by = |weight| vote(&answers, &majority().weights(Some(&[weight; 3])));
    let largest = vote_by(1e290).unwrap();
    assert_eq!(largest.winner().unwrap().weight, 2e290);
    assert!((largest.share - 2.0 / 3.0).abs() < 1e-12);
    for weight in [1.1e290, 1e308, f64::INFINITY] {
        let error = vote_by(weight).unwrap_err().to_string();
        assert!(error.starts_with(&format!("weights[0] = {weight}: ")), "{error}");
    }
}

#[test]
fn percentiles_of_the_largest_values_are_finite() {
    let most = 1.7e308;
    for (q, expected) in [(0.0, -most), (25.0, -most / 2.0), (50.0, 0.0), (100.0, most)] {
        let got = percentile(&mut [most, -most], q).unwrap();
        assert!((got - expected).abs() <= 1e-12 * most, "{q}: {got}");
    }
    let scores = [-most, most, -most];
    let kept = vote(&[Some(1), Some(2), Some(3)], &majority().keep(0.25).scores(Some(&scores)));
    let kept = kept.unwrap();
    assert_eq!((kept.threshold, kept.num_voters), (Some(0.0), 1));
}

#[test]
fn integers_vote_as_other_values_do_close_together_or_not() {
    let rows = 200_000;
    for (lowest, far) in [(0_i64, 7_i64), (-300, 1), (i64::MAX - 600, i64::MIN), (1 << 40, 1 << 50)]
    {
        let dice = &mut Dice(7);
        let mut question = || match dice.below(500) {
            0 => far.wrapping_sub(dice.below(3) as i64),
            at => lowest + at as i64,
        };
        let questions: Vec<_> = (0..rows).map(|_| question()).collect();
        let answers: Vec<_> = (0..rows).map(|_| dice.below(5) as i64).collect();
        let scores: Vec<_> = (0..rows).map(|_| dice.below(800) as f64 / 8.0).collect();
        let given: Vec<_> = answers.iter().copied().map(Some).collect();
        for keep in [0.1, 1.0] {
            let rules = Rules::default().weights(Some(&scores)).keep(keep);
            let votes = vote_columns(&Integers(&questions), &Integers(&answers), &rules).unwrap();
            assert_eq!(votes, vote_many(&questions, &given, &rules).unwrap());
        }
    }
}
