//! `vote` and `vote_many` against a naive count.

use std::ops::Range;

use arbitrary::{Result, Unstructured};
use deepconf_core::vote::{Key, Keys, Rules, Vote, vote, vote_column, vote_columns, vote_many};

use crate::oracle::{self, Dice, Tally};

/// Texts one after the other, as Arrow has them.
struct Texts {
    buffer: Vec<u8>,
    places: Vec<Option<Range<usize>>>,
    /// Whether texts whose lengths are alike share a key.
    colliding: bool,
}

impl Texts {
    fn new(texts: &[Option<&String>], colliding: bool) -> Self {
        let mut buffer = Vec::new();
        let mut append = |text: &String| {
            buffer.extend(text.as_bytes());
            buffer.len() - text.len()..buffer.len()
        };
        let places = texts.iter().map(|text| text.map(&mut append)).collect();
        Self { buffer, places, colliding }
    }

    fn bytes(&self, row: usize) -> Option<&[u8]> {
        self.places[row].clone().map(|place| &self.buffer[place])
    }
}

impl Keys for Texts {
    fn rows(&self) -> usize {
        self.places.len()
    }

    fn keys(&self, rows: Range<usize>, out: &mut Vec<Key>) {
        out.extend(self.places[rows].iter().map(|place| match place {
            None => Key::MISSING,
            Some(place) if self.colliding => Key::hash(place.len() % 2),
            Some(place) => Key::text(&self.buffer, place.clone()),
        }));
    }

    fn same(&self, left: usize, right: usize) -> bool {
        self.bytes(left) == self.bytes(right)
    }

    fn text(&self, row: usize) -> Option<&[u8]> {
        self.bytes(row).filter(|_| !self.colliding)
    }
}

/// Texts around the fifteen bytes that fit a key, some of them alike but for one byte.
fn alphabet(u: &mut Unstructured) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for _ in 0..u.int_in_range(1..=40)? {
        let long = *u.choose(&[0, 1, 7, 8, 12, 13, 14, 15, 16, 17, 31, 100])?;
        let mut text = u.choose(&["a", "\0", "7", "ü"])?.repeat(long);
        text.push_str(u.arbitrary::<&str>()?.get(..1).unwrap_or(""));
        texts.push(text);
    }
    // Equal texts would be one answer to the crate and two to the oracle.
    texts.sort();
    texts.dedup();
    Ok(texts)
}

pub fn run(u: &mut Unstructured) -> Result<()> {
    let n = length(u)?;
    let texts = alphabet(u)?;
    let (questions, together) = (u.int_in_range(1..=60)?, u.arbitrary()?);
    let keep = match u.int_in_range(0..=2)? {
        0 => 1.0,
        1 => *u.choose(&[0.1, 0.5, 0.9, 0.001, 0.37])?,
        _ => (f64::from(u.arbitrary::<u16>()?) + 1.0) / 65_536.0,
    };
    let (weighted, scored) = (u.arbitrary()?, u.arbitrary()?);
    let (min_ballots, over_all) = (u.int_in_range(0..=5)?, u.arbitrary()?);
    let gaps = u.int_in_range(2..=20)?;
    let colliding = u.ratio(1, 4)?;
    let dice = &mut Dice(u.arbitrary()?);

    let answers: Vec<Option<usize>> =
        (0..n).map(|_| (dice.below(gaps) > 0).then(|| dice.below(texts.len()))).collect();
    let mut asked: Vec<usize> = (0..n).map(|_| dice.below(questions)).collect();
    if together {
        asked.sort_unstable();
    }
    // Small multiples of 1/8, of which float64 holds every sum.
    let eighths: Vec<f64> = (0..n).map(|_| dice.below(90) as f64 / 8.0).collect();
    let score = |dice: &mut Dice| match dice.below(8) {
        0 => f64::NAN,
        _ => dice.below(90) as f64 / 8.0 - 2.0,
    };
    let scores: Vec<f64> = (0..n).map(|_| score(dice)).collect();
    let rules = Rules::default()
        .weights(Some(&eighths[..]).filter(|_| weighted))
        .keep(keep)
        .scores(Some(&scores[..]).filter(|_| scored))
        .min_ballots(min_ballots)
        .over_all(over_all);
    let one = vote(&answers, &rules);
    if keep < 1.0 && !weighted && !scored {
        assert!(one.is_err());
        return Ok(());
    }
    let one = one.unwrap();
    agree(&one, &naive(&answers, &rules, &(0..n).collect::<Vec<_>>()));
    let column = |rows: &[Option<usize>]| -> Texts {
        let texts: Vec<_> = rows.iter().map(|at| at.map(|at| &texts[at])).collect();
        Texts::new(&texts, colliding)
    };
    let answer_column = column(&answers);
    assert_eq!(vote_column(&answer_column, &rules).unwrap(), one);

    let many = vote_many(&asked, &answers, &rules).unwrap();
    let names: Vec<String> = (0..questions).map(|at| format!("question {at:>9}")).collect();
    let names: Vec<_> = asked.iter().map(|&at| Some(&names[at])).collect();
    let question_column = Texts::new(&names, colliding);
    let columns = vote_columns(&question_column, &answer_column, &rules);
    assert_eq!(columns.unwrap(), many);
    let rows = oracle::rows_by_question(&asked);
    assert_eq!(rows.len(), many.question_rows.len());
    for (at, rows) in rows.iter().enumerate() {
        let tally = naive(&answers, &rules, rows);
        assert_eq!(many.question_rows[at], rows[0]);
        assert_eq!(many.answer_rows[at], tally.ballots.first().map(|b| rows[b.0]));
        assert_eq!(many.share[at], tally.share);
        assert_eq!(many.num_voters[at] as usize, tally.voters.len());
        assert_eq!(many.fallback[at], tally.fallback);
    }
    Ok(())
}

fn length(u: &mut Unstructured) -> Result<usize> {
    let most = *u.choose(&[0, 1, 20, 300, 3_000])?;
    u.int_in_range(0..=most)
}

fn naive(answers: &[Option<usize>], rules: &Rules, rows: &[usize]) -> Tally {
    let of = |column: &[f64]| rows.iter().map(|&row| column[row]).collect::<Vec<_>>();
    let weights = rules.weights.map(of);
    let scores = rules.scores.map(of).or(weights.clone());
    let weights = weights.unwrap_or_else(|| vec![1.0; rows.len()]);
    let answers: Vec<_> = rows.iter().map(|&row| answers[row]).collect();
    let &Rules { keep, min_ballots, over_all, .. } = rules;
    oracle::vote(&answers, &weights, scores.as_deref(), keep, min_ballots, over_all)
}

fn agree(vote: &Vote, tally: &Tally) {
    let ballots: Vec<_> = vote.ballots.iter().map(|b| (b.first, b.weight, b.voters)).collect();
    assert_eq!(ballots, tally.ballots);
    assert_eq!((vote.share, vote.num_voters), (tally.share, tally.voters.len()));
    assert_eq!((vote.threshold, vote.fallback), (tally.threshold, tally.fallback));
}
