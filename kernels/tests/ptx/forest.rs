//! Who sees whom, for tests: forests of shared prefixes, parts of them, and rules no forest gives.

/// Numbers as the kernels take them: query `q` sees key `k` iff `start[k] <= query[q] < end[k]`.
#[derive(Debug, Clone)]
pub struct Sights {
    pub query: Vec<u32>,
    pub start: Vec<u32>,
    pub end: Vec<u32>,
}

/// A small generator; the same seed, the same numbers.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// From 0 up to `below`.
    pub fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

/// A forest of `tokens` in depth-first order, in nodes of up to `longest` tokens; a node hangs on any node of the path to
/// its predecessor, the deeper the less `wide` is, and sometimes begins a tree of its own.
pub fn forest(tokens: usize, longest: usize, wide: usize, seed: u64) -> Sights {
    let mut chance = Chance::new(seed);
    // First token and depth of each node.
    let mut nodes = vec![(0, 0)];
    let mut at = 1 + chance.below(longest);
    while at < tokens {
        let depth = nodes[nodes.len() - 1].1 + 1;
        nodes.push((at, depth - chance.below(wide + 1).min(depth)));
        at += 1 + chance.below(longest);
    }
    let mut end = vec![tokens as u32; tokens];
    for (i, (first, depth)) in nodes.iter().enumerate() {
        let after = nodes[i + 1..].iter().find(|(_, other)| other <= depth).map_or(tokens, |(after, _)| *after);
        let own = *first..nodes.get(i + 1).map_or(tokens, |(next, _)| *next);
        end[own].fill(after as u32);
    }
    let all: Vec<u32> = (0..tokens as u32).collect();
    Sights { query: all.clone(), start: all, end }
}

impl Sights {
    /// Everyone sees everyone.
    pub fn all(queries: usize, keys: usize) -> Self {
        Self { query: (0..queries as u32).collect(), start: vec![0; keys], end: vec![queries as u32; keys] }
    }

    /// Only the queries that `keep` wants.
    pub fn of_queries(mut self, keep: impl Fn(u32) -> bool) -> Self {
        self.query.retain(|query| keep(*query));
        self
    }

    /// Only the keys that `keep` wants, or that no query would see anything without.
    pub fn of_keys(self, keep: impl Fn(usize) -> bool) -> Self {
        let seen = |query: &u32, key: usize| self.start[key] <= *query && *query < self.end[key];
        let needed: Vec<usize> =
            self.query.iter().filter_map(|query| (0..self.start.len()).find(|key| seen(query, *key))).collect();
        let kept: Vec<usize> = (0..self.start.len()).filter(|key| keep(*key) || needed.contains(key)).collect();
        let of = |values: &[u32]| kept.iter().map(|key| values[*key]).collect();
        Self { query: self.query.clone(), start: of(&self.start), end: of(&self.end) }
    }

    /// Keys in an order that is nobody's, seen by stretches of queries; queries in no order either.
    pub fn tangled(queries: usize, keys: usize, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let mut query: Vec<u32> = (0..queries as u32).collect();
        (1..queries).for_each(|i| query.swap(i, chance.below(i + 1)));
        let start: Vec<u32> =
            (0..keys).map(|key| if key == keys / 2 { 0 } else { chance.below(queries) as u32 }).collect();
        let reach = |start: u32, chance: &mut Chance| start + chance.below(queries / 4 + 1) as u32;
        let mut end: Vec<u32> = start.iter().map(|start| reach(*start, &mut chance)).collect();
        end[keys / 2] = queries as u32;
        Self { query, start, end }
    }
}

#[test]
fn a_forest_is_made_of_subtrees() {
    for seed in 0..20 {
        let Sights { query, start, end } = forest(200, 9, 3, seed);
        assert_eq!((query.len(), &start), (200, &query), "seed {seed}");
        for (i, last) in end.iter().enumerate() {
            assert!((i + 1..=200).contains(&(*last as usize)), "seed {seed}: {i} ends at {last}");
            let within = (i..*last as usize).all(|j| end[j] <= *last);
            assert!(within, "seed {seed}: what is below {i} ends before {last}");
        }
    }
}
