use super::*;
use crate::devices::tpm::command::{HEADER, RC_BAD_TAG, RC_COMMAND_SIZE};
use proptest::prelude::*;

const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 16];

fn word(crb: &Crb, at: u64) -> u32 {
    let mut bytes = [0; 4];
    crb.read(at, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn set(crb: &mut Crb, at: u64, value: u32) -> Option<Command> {
    crb.write(at, &value.to_le_bytes())
}

/// A write that starts nothing.
fn put(crb: &mut Crb, at: u64, data: &[u8]) {
    assert_eq!(crb.write(at, data), None);
}

fn fresh() -> Crb {
    Crb::new(BUFFER_SIZE, false)
}

/// With the locality taken, and ready.
fn ready() -> Crb {
    let mut crb = fresh();
    put(&mut crb, LOC_CTRL, &REQUEST_ACCESS.to_le_bytes());
    put(&mut crb, CTRL_REQ, &CMD_READY.to_le_bytes());
    crb
}

fn started() -> Crb {
    let mut crb = ready();
    put(&mut crb, BUFFER, &GET_RANDOM);
    assert_eq!(set(&mut crb, CTRL_START, START), Some(Command(GET_RANDOM.into())));
    crb
}

/// The first bytes of the buffer.
fn answer(crb: &Crb) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    crb.read(BUFFER, &mut bytes);
    bytes
}

#[test]
fn a_command_goes_out_and_its_answer_is_read() {
    let mut crb = started();
    assert_eq!((word(&crb, CTRL_START), word(&crb, CTRL_STS)), (START, 0));
    let said = [[0x80, 1, 0, 0, 0, 28, 0, 0, 0, 0].as_slice(), &[7; 18]].concat();
    crb.complete(&said);
    assert_eq!((word(&crb, CTRL_START), word(&crb, CTRL_STS)), (0, 0));
    let mut read = vec![0; 28];
    crb.read(BUFFER, &mut read);
    assert_eq!(read, said);
    // The next one without another cmdReady, as Linux sends it.
    put(&mut crb, BUFFER, &GET_RANDOM);
    assert_eq!(set(&mut crb, CTRL_START, START), Some(Command(GET_RANDOM.into())));
    crb.complete(&said);
    put(&mut crb, CTRL_REQ, &GO_IDLE.to_le_bytes());
    assert_eq!((word(&crb, CTRL_REQ), word(&crb, CTRL_STS)), (0, TPM_IDLE));
}

#[test]
fn a_driver_is_told_what_there_is() {
    let crb = fresh();
    assert_eq!(word(&crb, LOC_STATE), REG_VALID | NOT_ESTABLISHED);
    assert_eq!(word(&Crb::new(BUFFER_SIZE, true), LOC_STATE), REG_VALID);
    assert_eq!((word(&crb, CTRL_STS), word(&crb, LOC_STS)), (TPM_IDLE, 0));
    // Type and version, CRB and no FIFO.
    let id = word(&crb, INTF_ID);
    assert_eq!((id & 0xff, id >> 13 & 0b11, id >> 17 & 0b11), (0x11, 0b10, 0b01));
    assert_eq!((word(&crb, CMD_ADDR), word(&crb, CMD_ADDR + 4)), (0xfed4_0080, 0));
    assert_eq!((word(&crb, RSP_ADDR), word(&crb, RSP_ADDR + 4)), (0xfed4_0080, 0));
    assert_eq!((word(&crb, CMD_SIZE), word(&crb, RSP_SIZE)), (0xf80, 0xf80));
    let small = Crb::new(64, false);
    assert_eq!((word(&small, CMD_SIZE), word(&small, RSP_SIZE)), (64, 64));
    assert_eq!(Crb::new(1 << 20, false).room(), BUFFER_SIZE);
}

#[test]
fn without_its_locality_nothing_is_changed() {
    let mut crb = fresh();
    put(&mut crb, CTRL_REQ, &CMD_READY.to_le_bytes());
    assert_eq!(word(&crb, CTRL_STS), TPM_IDLE);
    put(&mut crb, CTRL_CANCEL, &CANCEL.to_le_bytes());
    assert_eq!(word(&crb, CTRL_CANCEL), 0);
    assert_eq!(answer(&crb), [0xff; HEADER]);
    let mut crb = ready();
    assert_eq!(
        (word(&crb, LOC_STS), word(&crb, LOC_STATE) & LOC_ASSIGNED),
        (GRANTED, LOC_ASSIGNED)
    );
    put(&mut crb, BUFFER, &GET_RANDOM);
    put(&mut crb, LOC_CTRL, &RELINQUISH.to_le_bytes());
    assert_eq!((word(&crb, LOC_STS), word(&crb, LOC_STATE) & LOC_ASSIGNED), (0, 0));
    assert_eq!(set(&mut crb, CTRL_START, START), None);
    assert_eq!(answer(&crb), [0xff; HEADER]);
    put(&mut crb, BUFFER, &[0xaa; 4]);
    put(&mut crb, LOC_CTRL, &REQUEST_ACCESS.to_le_bytes());
    assert_eq!(answer(&crb), GET_RANDOM[..HEADER], "as it was");
    // Seizing it, and resetting the bit of a launch, are other localities'.
    put(&mut crb, LOC_CTRL, &0b1100u32.to_le_bytes());
    assert_eq!(word(&crb, LOC_STATE), REG_VALID | NOT_ESTABLISHED | LOC_ASSIGNED);
}

#[test]
fn start_counts_only_where_a_command_can_be() {
    let mut crb = fresh();
    put(&mut crb, LOC_CTRL, &REQUEST_ACCESS.to_le_bytes());
    put(&mut crb, BUFFER, &GET_RANDOM);
    assert_eq!(set(&mut crb, CTRL_START, START), None, "idle");
    assert_eq!((word(&crb, CTRL_START), answer(&crb)), (0, [0; HEADER]), "nor is it written");
    let mut crb = started();
    assert_eq!(set(&mut crb, CTRL_START, START), None, "twice");
    put(&mut crb, BUFFER, &[0; 12]);
    assert_eq!(answer(&crb), GET_RANDOM[..HEADER]);
    put(&mut crb, LOC_CTRL, &RELINQUISH.to_le_bytes());
    assert_eq!((word(&crb, CTRL_START), word(&crb, LOC_STS)), (START, 0), "it runs on");
    put(&mut crb, LOC_CTRL, &REQUEST_ACCESS.to_le_bytes());
    crb.complete(&command::refusal(0));
    assert_eq!((word(&crb, CTRL_START), answer(&crb)), (0, command::refusal(0)));
    let mut crb = ready();
    put(&mut crb, BUFFER, &GET_RANDOM);
    assert_eq!(set(&mut crb, CTRL_START, !START), None, "another bit");
    assert_eq!(set(&mut crb, CTRL_START - 1, START), None, "another register");
}

#[test]
fn a_cancel_is_remembered_and_ends_nothing() {
    let mut crb = started();
    put(&mut crb, CTRL_CANCEL, &CANCEL.to_le_bytes());
    assert_eq!((word(&crb, CTRL_CANCEL), word(&crb, CTRL_START)), (CANCEL, START));
    crb.complete(&command::refusal(0));
    put(&mut crb, CTRL_CANCEL, &[0; 4]);
    assert_eq!((word(&crb, CTRL_CANCEL), word(&crb, CTRL_START)), (0, 0));
}

/// As Linux does where a command takes longer than it waits.
#[test]
fn what_is_asked_for_during_a_command_waits_for_its_end() {
    let mut crb = started();
    put(&mut crb, CTRL_REQ, &GO_IDLE.to_le_bytes());
    assert_eq!((word(&crb, CTRL_REQ), word(&crb, CTRL_STS)), (GO_IDLE, 0));
    crb.complete(&[1; 20]);
    assert_eq!((word(&crb, CTRL_REQ), word(&crb, CTRL_STS)), (0, TPM_IDLE));
    assert_eq!(answer(&crb), GET_RANDOM[..HEADER], "its answer is dropped");
    // Nobody waits for this one.
    crb.complete(&[1; 20]);
    assert_eq!((word(&crb, CTRL_STS), answer(&crb)[0]), (TPM_IDLE, GET_RANDOM[0]));
    let mut crb = started();
    put(&mut crb, CTRL_REQ, &GO_IDLE.to_le_bytes());
    put(&mut crb, CTRL_REQ, &CMD_READY.to_le_bytes());
    // No other command is taken for this one, nor is this one's answer taken for another's.
    assert_eq!((word(&crb, CTRL_REQ), set(&mut crb, CTRL_START, START)), (CMD_READY, None));
    crb.complete(&[1; 20]);
    assert_eq!((word(&crb, CTRL_REQ), word(&crb, CTRL_STS), word(&crb, CTRL_START)), (0, 0, 0));
    assert_eq!(set(&mut crb, CTRL_START, START), Some(Command(GET_RANDOM.into())));
    let mut crb = started();
    put(&mut crb, CTRL_REQ, &GO_IDLE.to_le_bytes());
    crb.fail();
    assert_eq!(word(&crb, CTRL_STS), TPM_STS | TPM_IDLE);
}

#[test]
fn what_is_no_command_is_answered_at_once() {
    let refused = |header: &[u8]| {
        let mut crb = ready();
        put(&mut crb, BUFFER, header);
        assert_eq!(set(&mut crb, CTRL_START, START), None);
        assert_eq!(word(&crb, CTRL_START), 0);
        answer(&crb)
    };
    for size in [0u32, 9, BUFFER_SIZE as u32 + 1, u32::MAX] {
        let size = size.to_be_bytes();
        assert_eq!(
            refused(&[&[0x80, 1], &size[..], &[0, 0, 1, 0x7b]].concat()),
            command::refusal(RC_COMMAND_SIZE)
        );
    }
    assert_eq!(refused(&[0; HEADER]), command::refusal(RC_BAD_TAG));
    let mut crb = ready();
    let largest = (BUFFER_SIZE as u32).to_be_bytes();
    put(&mut crb, BUFFER, &[&[0x80, 1], &largest[..], &[0, 0, 1, 0x7b]].concat());
    assert_eq!(set(&mut crb, CTRL_START, START).map(|c| c.0.len()), Some(BUFFER_SIZE));
    // A smaller buffer bounds it, too.
    let mut crb = Crb::new(11, false);
    put(&mut crb, LOC_CTRL, &REQUEST_ACCESS.to_le_bytes());
    put(&mut crb, CTRL_REQ, &CMD_READY.to_le_bytes());
    put(&mut crb, BUFFER, &GET_RANDOM);
    assert_eq!(set(&mut crb, CTRL_START, START), None);
    assert_eq!(answer(&crb), command::refusal(RC_COMMAND_SIZE));
}

#[test]
fn a_tpm_that_failed_says_so_for_good() {
    let mut crb = started();
    crb.fail();
    assert_eq!((word(&crb, CTRL_START), word(&crb, CTRL_STS)), (0, TPM_STS));
    assert_eq!(answer(&crb), command::refusal(RC_FAILURE));
    put(&mut crb, CTRL_REQ, &CMD_READY.to_le_bytes());
    put(&mut crb, BUFFER, &GET_RANDOM);
    assert_eq!(set(&mut crb, CTRL_START, START), None);
    assert_eq!(answer(&crb), command::refusal(RC_FAILURE));
    put(&mut crb, CTRL_REQ, &GO_IDLE.to_le_bytes());
    assert_eq!(word(&crb, CTRL_STS), TPM_STS | TPM_IDLE);
}

/// Every size at every offset: the same bytes as byte by byte, and nothing outside of the page.
#[test]
fn accesses_of_every_size_are_of_the_same_bytes() {
    let mut crb = ready();
    for at in 0..BUFFER_SIZE as u64 {
        put(&mut crb, BUFFER + at, &[at as u8 ^ 0x5a]);
    }
    for at in 0..SIZE {
        for size in [1, 2, 4, 8] {
            let mut read = [0; 8];
            crb.read(at, &mut read[..size]);
            for (n, byte) in read[..size].iter().enumerate() {
                let mut one = [0];
                crb.read(at + n as u64, &mut one);
                assert_eq!(*byte, one[0], "{at:#x}, {size}");
            }
        }
    }
    let mut past = [0; 8];
    crb.read(SIZE - 4, &mut past);
    assert_eq!(past[4..], [0xff; 4]);
    for at in [SIZE, u64::MAX - 3, u64::MAX] {
        crb.read(at, &mut past);
        put(&mut crb, at, &[1; 8]);
    }
    // A command that is written in pieces of all sizes, the first of which begins before the buffer.
    let mut crb = ready();
    put(&mut crb, BUFFER - 4, &[&[0; 4], &GET_RANDOM[..4]].concat());
    put(&mut crb, BUFFER + 4, &GET_RANDOM[4..5]);
    put(&mut crb, BUFFER + 5, &GET_RANDOM[5..7]);
    put(&mut crb, BUFFER + 7, &GET_RANDOM[7..11]);
    put(&mut crb, BUFFER + 11, &GET_RANDOM[11..]);
    // A byte of a register, and two registers at once.
    assert_eq!(crb.write(CTRL_CANCEL, &[0, 0, 0, 0, 1, 0, 0, 0]), Some(Command(GET_RANDOM.into())));
    crb.complete(&command::refusal(0));
    assert!(crb.write(CTRL_START, &[1]).is_some(), "a byte is enough");
}

/// What a guest does, and when answers come.
#[derive(Clone, Debug)]
enum Act {
    Read { at: u64, size: usize },
    Write { at: u64, data: Vec<u8> },
    Command(Vec<u8>),
    Answer(Vec<u8>),
    Fail,
}

fn offsets() -> impl Strategy<Value = u64> {
    let registers = vec![
        LOC_STATE,
        LOC_CTRL,
        LOC_STS,
        INTF_ID,
        CTRL_REQ,
        CTRL_STS,
        CTRL_CANCEL,
        CTRL_START,
        CMD_SIZE,
        RSP_ADDR,
        BUFFER,
    ];
    prop_oneof![
        6 => proptest::sample::select(registers),
        2 => 0..SIZE,
        1 => SIZE - 8..=SIZE + 8,
        1 => any::<u64>(),
    ]
}

fn acts() -> impl Strategy<Value = Act> {
    let size = || proptest::sample::select(vec![1usize, 2, 4, 8]);
    let data = prop_oneof![
        size().prop_flat_map(|size| proptest::collection::vec(any::<u8>(), size)),
        (0u32..4).prop_map(|bits| bits.to_le_bytes().to_vec()),
    ];
    let header = (any::<u8>(), 0u32..5000, any::<u32>()).prop_map(|(tag, size, code)| {
        [&[0x80, tag & 3][..], &size.to_be_bytes(), &code.to_be_bytes()].concat()
    });
    prop_oneof![
        3 => (offsets(), size()).prop_map(|(at, size)| Act::Read { at, size }),
        6 => (offsets(), data).prop_map(|(at, data)| Act::Write { at, data }),
        2 => header.prop_map(Act::Command),
        2 => proptest::collection::vec(any::<u8>(), 10..5000).prop_map(Act::Answer),
        1 => Just(Act::Fail),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever comes in whatever order: one command at most is out, it fits and says its own length, a failed TPM has
    /// none, and what drivers rely on stays.
    #[test]
    fn any_accesses_keep_the_rules(acts in proptest::collection::vec(acts(), 1..200)) {
        let (mut crb, mut out, mut failed) = (fresh(), false, false);
        for act in acts {
            match act {
                Act::Read { at, size } => {
                    let before = word(&crb, CTRL_STS);
                    crb.read(at, &mut [0; 8][..size]);
                    prop_assert_eq!(word(&crb, CTRL_STS), before, "reads change nothing");
                }
                Act::Write { at, data } => {
                    if let Some(Command(command)) = crb.write(at, &data) {
                        prop_assert!(!out && !failed);
                        prop_assert_eq!(command::length(&command), Ok(command.len()));
                        out = true;
                    }
                }
                // What a driver does, so that commands come at all.
                Act::Command(header) => {
                    for (at, value) in [(LOC_CTRL, REQUEST_ACCESS), (CTRL_REQ, CMD_READY)] {
                        prop_assert_eq!(set(&mut crb, at, value), None);
                    }
                    prop_assert_eq!(crb.write(BUFFER, &header), None);
                    let started = set(&mut crb, CTRL_START, START);
                    prop_assert!(started.is_none() || !out && !failed);
                    out |= started.is_some();
                }
                Act::Answer(bytes) => {
                    crb.complete(&bytes);
                    out = false;
                }
                Act::Fail => {
                    crb.fail();
                    (out, failed) = (false, true);
                }
            }
            prop_assert_eq!(word(&crb, CTRL_START) == START, out);
            prop_assert_eq!(word(&crb, CTRL_STS) & TPM_STS != 0, failed);
            prop_assert!(out || word(&crb, CTRL_REQ) == 0);
            prop_assert!(!(out && word(&crb, CTRL_STS) & TPM_IDLE != 0));
            prop_assert_eq!(word(&crb, LOC_STATE) & REG_VALID, REG_VALID);
            prop_assert_eq!(word(&crb, LOC_STS) == GRANTED, word(&crb, LOC_STATE) & LOC_ASSIGNED != 0);
            prop_assert_eq!((word(&crb, CMD_SIZE), crb.room()), (BUFFER_SIZE as u32, BUFFER_SIZE));
        }
    }
}
