use super::*;
use crate::devices::tpm::testing::{Fake, SOCKET, good};
use std::net::Shutdown;

const ROOM: usize = 0xf80;
/// Far beyond what an emulator needs that answers.
const LONG: Duration = Duration::from_mins(1);

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// What is said of an emulator that gives `answer` to one request.
fn told(number: u32, answer: Vec<u8>, patience: Duration) -> String {
    let control = move |asked| if asked == number { answer.clone() } else { good(asked) };
    let emulator = Fake::start(control, drop);
    let error = connect(&emulator.path(), ROOM, patience, &mut || true).expect_err("it is wrong");
    emulator.join();
    error.to_string()
}

#[test]
fn an_emulator_is_set_up() {
    let control = |number| if number == 0x04 { words(&[0, 1 << 24]) } else { good(number) };
    let emulator = Fake::start(control, |mut data| {
        let mut command = [0; 12];
        data.read_exact(&mut command).unwrap();
        data.write_all(&command::refusal(u32::from(command[11]))).unwrap();
    });
    let mut tpm = connect(&emulator.path(), ROOM, LONG, &mut || true).unwrap();
    assert_eq!((tpm.room, tpm.established), (ROOM, true));
    let answer = execute(&mut tpm.data, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7], ROOM).unwrap();
    assert_eq!(answer, command::refusal(7));
    drop(tpm);
    emulator.join();
}

#[test]
fn what_is_wrong_with_an_emulator_is_told() {
    for (number, answer, expected) in [
        (GET_CAPABILITY, words(&[0, 0xffff & !1]), "has no CMD_INIT"),
        (GET_CAPABILITY, words(&[0, 0xffff & !(1 << 12)]), "has no CMD_SET_DATAFD"),
        (GET_CAPABILITY, b"HTTP".to_vec(), "CMD_GET_CAPABILITY with error 0x48545450"),
        (SET_DATAFD, words(&[0x1f]), "CMD_SET_DATAFD with error 0x1f"),
        (STOP, words(&[9]), "CMD_STOP with error 0x9"),
        (SET_BUFFERSIZE, words(&[0, ROOM as u32 + 1, 0, 0]), "3969 bytes: one of 10 to 3968"),
        (SET_BUFFERSIZE, words(&[0, 9, 0, 0]), "9 bytes"),
        (SET_BUFFERSIZE, words(&[0, u32::MAX, 0, 0]), "4294967295 bytes"),
        (INIT, words(&[0x101]), "CMD_INIT with error 0x101"),
        (SET_LOCALITY, words(&[0x3d]), "CMD_SET_LOCALITY with error 0x3d"),
        (GET_TPMESTABLISHED, words(&[9]), "CMD_GET_TPMESTABLISHED with error 0x9"),
    ] {
        let text = told(number.number, answer, LONG);
        assert!(text.contains(expected) && text.contains(SOCKET), "{text}");
    }
}

#[test]
fn an_emulator_that_is_silent_is_not_waited_for_without_end() {
    let short = Duration::from_millis(50);
    for (request, part) in
        [(GET_CAPABILITY, vec![]), (INIT, vec![0, 0]), (SET_BUFFERSIZE, vec![0; 15])]
    {
        let text = told(request.number, part, short);
        assert!(text.contains("does not answer") && text.contains(request.name), "{text}");
    }
    assert!(told(0, vec![], Duration::ZERO).contains("CMD_GET_CAPABILITY"));
}

#[test]
fn who_waits_for_a_silent_emulator_can_give_up() {
    let emulator =
        Fake::start(|number| if number == STOP.number { vec![] } else { good(number) }, drop);
    let mut looks = 0;
    let error = connect(&emulator.path(), ROOM, LONG, &mut || {
        looks += 1;
        looks < 3
    });
    assert!(matches!(error, Err(TpmError::Interrupted)), "{error:?}");
    assert_eq!(looks, 3);
    emulator.join();
}

#[test]
fn a_missing_emulator_is_named_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SOCKET);
    for _ in 0..2 {
        let text = connect(&path, ROOM, LONG, &mut || true).unwrap_err().to_string();
        assert!(text.contains(SOCKET) && text.contains("swtpm socket --tpm2"), "{text}");
        // A dead one's socket stays.
        drop(std::os::unix::net::UnixListener::bind(&path));
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    assert!(
        matches!(connect(&path, ROOM, LONG, &mut || true), Err(TpmError::Nobody { .. })),
        "no socket"
    );
}

#[test]
fn answers_are_allegations() {
    let said = |bytes: &[u8]| {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        execute(&mut ours, &[0; 12], 16)
    };
    let sized = |size: u32| [&[0x80, 1][..], &size.to_be_bytes(), &[0; 10]].concat();
    for size in [10, 16] {
        assert_eq!(said(&sized(size)).unwrap(), sized(size)[..size as usize]);
    }
    for size in [0, 9, 17, u32::MAX] {
        assert!(matches!(said(&sized(size)), Err(LostError::Answer { room: 16 })), "{size}");
    }
    for cut in [0, 1, 9, 10, 15] {
        assert!(matches!(said(&sized(16)[..cut]), Err(LostError::Broken(_))), "{cut}");
    }
    // Nobody is there at all.
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(execute(&mut ours, &[0; 12], 16), Err(LostError::Broken(_))));
}
