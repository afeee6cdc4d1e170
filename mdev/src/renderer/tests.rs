use super::stream::{Command, Stream};
use super::writer::Writer;
use super::*;
use beamline_abi::Reason;
use beamline_abi::frame::SubmitKind;
use proptest::prelude::*;

/// The renderer process of other tests: they start this test by its name, with a socket as its input.
#[test]
#[ignore = "started by other tests as a process of its own"]
fn child() {
    match main() {
        Ok(()) => {}
        Err(RendererError::NotAChild) => eprintln!("skip: child: nobody started it as a renderer"),
        Err(error) => eprintln!("renderer: {error}"),
    }
}

fn reasons(bytes: &[u8], kind: SubmitKind) -> Option<Reason> {
    match Stream::open(bytes, kind) {
        Ok(stream) => stream.filter_map(Result::err).last(),
        Err(reason) => Some(reason),
    }
}

#[test]
fn what_is_written_is_read_back() {
    let job = Writer::new(SubmitKind::Job)
        .write(3, 8, &[1, 2, 3, 4])
        .latch(3, 0, 16)
        .dispatch(2, [4, 5, 6], &[(0, 3), (1, 9)])
        .present(9)
        .finish();
    let commands: Vec<_> =
        Stream::open(&job, SubmitKind::Job).unwrap().map(Result::unwrap).collect();
    assert!(matches!(
        commands[0],
        Command::Write { id: 3, offset: 8, data } if data == [1, 2, 3, 4]
    ));
    assert!(matches!(&commands[1], Command::Latch(latch) if latch.len == 16));
    match &commands[2] {
        Command::Dispatch { pipeline, groups, bindings } => {
            assert_eq!((*pipeline, *groups), (2, [4, 5, 6]));
            let pairs: Vec<_> = bindings.as_slice().iter().map(|b| (b.slot, b.id)).collect();
            assert_eq!(pairs, [(0, 3), (1, 9)]);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(&commands[3], Command::Present(body) if body.image == 9));
    assert_eq!(commands.len(), 4);
}

#[test]
fn a_stream_that_contradicts_itself_is_malformed() {
    let job = Writer::new(SubmitKind::Job).write(1, 0, &[0; 8]).finish();
    assert_eq!(reasons(&job, SubmitKind::Job), None);
    assert_eq!(reasons(&job, SubmitKind::Setup), Some(Reason::Malformed));
    for len in 0..job.len() {
        assert!(reasons(&job[..len], SubmitKind::Job).is_some(), "{len}");
    }
    // A setup command in a job.
    let mut mixed = Writer::new(SubmitKind::Setup).buffer(1, 16).finish();
    mixed[6] = SubmitKind::Job as u8;
    assert_eq!(reasons(&mixed, SubmitKind::Job), Some(Reason::Malformed));
    // A version and an operation that are not known.
    let mut other = job.clone();
    other[4] = 9;
    assert_eq!(reasons(&other, SubmitKind::Job), Some(Reason::Unsupported));
    let mut other = job;
    other[32] = 200;
    assert_eq!(reasons(&other, SubmitKind::Job), Some(Reason::Unsupported));
}

proptest! {
    #[test]
    fn no_bytes_panic_the_reader(mut bytes: Vec<u8>, setup: bool) {
        let kind = if setup { SubmitKind::Setup } else { SubmitKind::Job };
        reasons(&bytes, kind);
        // With a header that is right, the commands are reached.
        let mut stream = Writer::new(kind).finish();
        stream[24] = 3;
        stream[28..32].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        stream.append(&mut bytes);
        reasons(&stream, kind);
    }

    #[test]
    fn no_changed_byte_panics_the_reader(at in 32_usize..200, to: u8) {
        let mut stream = Writer::new(SubmitKind::Job)
            .write(1, 0, &[7; 40])
            .dispatch(2, [1, 1, 1], &[(0, 1), (1, 4)])
            .latch(1, 4, 8)
            .present(4)
            .finish();
        if let Some(byte) = stream.get_mut(at) {
            *byte = to;
        }
        reasons(&stream, SubmitKind::Job);
    }
}
