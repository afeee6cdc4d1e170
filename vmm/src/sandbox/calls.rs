//! A list of system calls, some only with certain arguments.

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// What one argument must be: its place, the bits that are looked at, and their value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arg {
    place: u8,
    mask: Option<u32>,
    value: u32,
}

/// The argument at `place` is `value`. The kernel takes all arguments that we look at as 32 bits.
pub(super) const fn is(place: u8, value: u32) -> Arg {
    Arg { place, mask: None, value }
}

/// Of the argument at `place`, the bits in `mask` are those of `value`.
pub(super) const fn bits(place: u8, mask: u32, value: u32) -> Arg {
    Arg { place, mask: Some(mask), value }
}

/// The calls that are on a list, by number. An empty list of rules: with any arguments.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls(BTreeMap<i64, Vec<Vec<Arg>>>);

impl Calls {
    /// These, with any arguments.
    pub(super) fn allow(mut self, calls: &[i64]) -> Self {
        self.0.extend(calls.iter().map(|call| (*call, Vec::new())));
        self
    }

    /// This one, where all of `arguments` are so; once more: or where those are.
    pub(super) fn allow_if(mut self, call: i64, arguments: &[Arg]) -> Self {
        match self.0.get_mut(&call) {
            // Allowed with any arguments already.
            Some(rules) if rules.is_empty() => {}
            Some(rules) => rules.push(arguments.to_vec()),
            None => _ = self.0.insert(call, vec![arguments.to_vec()]),
        }
        self
    }

    /// This one, where the argument at `place` is any of `values`.
    pub(super) fn allow_values(self, call: i64, place: u8, values: &[u32]) -> Self {
        values.iter().fold(self, |calls, value| calls.allow_if(call, &[is(place, *value)]))
    }

    /// All of `other` as well.
    pub(super) fn and(mut self, other: Self) -> Self {
        for (call, rules) in other.0 {
            if rules.is_empty() {
                self.0.insert(call, rules);
            } else {
                self = rules.iter().fold(self, |calls, rule| calls.allow_if(call, rule));
            }
        }
        self
    }

    /// The program that answers `listed` to a call on the list and `others` to all others.
    pub(super) fn compile(
        &self,
        listed: SeccompAction,
        others: SeccompAction,
    ) -> Result<BpfProgram, BackendError> {
        let rules: BTreeMap<i64, Vec<SeccompRule>> = self
            .0
            .iter()
            .map(|(call, rules)| {
                Ok((*call, rules.iter().map(|r| rule(r)).collect::<Result<_, _>>()?))
            })
            .collect::<Result<_, BackendError>>()?;
        SeccompFilter::new(rules, others, listed, TargetArch::x86_64)?.try_into()
    }

    #[cfg(test)]
    pub(super) fn is_listed(&self, call: i64) -> bool {
        self.0.contains_key(&call)
    }
}

fn rule(arguments: &[Arg]) -> Result<SeccompRule, BackendError> {
    let condition = |arg: &Arg| {
        let operator = match arg.mask {
            Some(mask) => SeccompCmpOp::MaskedEq(u64::from(mask)),
            None => SeccompCmpOp::Eq,
        };
        SeccompCondition::new(arg.place, SeccompCmpArgLen::Dword, operator, u64::from(arg.value))
    };
    SeccompRule::new(arguments.iter().map(condition).collect::<Result<_, _>>()?)
}
