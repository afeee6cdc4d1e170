//! The header that each command and each answer of a TPM 2.0 starts with (TPM 2.0 Library 1.59, part 1, section 18),
//! and the answers that the VMM gives by itself.

/// Bytes of a header: tag (2), size of the whole (4), command or response code (4); big-endian.
pub(super) const HEADER: usize = 10;

/// `TPM_ST_NO_SESSIONS` and `TPM_ST_SESSIONS` (part 2, section 6.9).
const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;

/// Response codes (part 2, section 6.6.3).
pub(super) const RC_BAD_TAG: u32 = 0x01e;
pub(super) const RC_FAILURE: u32 = 0x101;
pub(super) const RC_COMMAND_SIZE: u32 = 0x142;
pub(super) const RC_COMMAND_CODE: u32 = 0x143;

/// swtpm's own command that chooses a locality, where it was started so. A guest has locality 0 alone.
const SWTPM_SET_LOCALITY: u32 = 0x2000_1000;

/// A header, as somebody says it.
struct Header {
    tag: u16,
    size: u32,
    code: u32,
}

impl Header {
    /// `None`: there are too few bytes.
    fn of(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first_chunk()?;
        let (size, rest) = rest.split_first_chunk()?;
        let (code, _) = rest.split_first_chunk()?;
        Some(Self {
            tag: u16::from_be_bytes(*tag),
            size: u32::from_be_bytes(*size),
            code: u32::from_be_bytes(*code),
        })
    }

    /// The size, where it is one that fits into `room` bytes.
    fn within(&self, room: usize) -> Option<usize> {
        usize::try_from(self.size).ok().filter(|size| (HEADER..=room).contains(size))
    }
}

/// How long the command at the start of `buffer` is, or the response code that it has earned. Only what is a command
/// of a TPM 2.0 by its tag goes on: swtpm takes other words too, which choose a locality.
pub(super) fn length(buffer: &[u8]) -> Result<usize, u32> {
    let header = Header::of(buffer).ok_or(RC_COMMAND_SIZE)?;
    if !matches!(header.tag, NO_SESSIONS | SESSIONS) {
        return Err(RC_BAD_TAG);
    }
    let size = header.within(buffer.len()).ok_or(RC_COMMAND_SIZE)?;
    if header.code == SWTPM_SET_LOCALITY {
        return Err(RC_COMMAND_CODE);
    }
    Ok(size)
}

/// How long the answer is that starts with `header`, where that is one of at most `room` bytes.
pub(super) fn answer_length(header: &[u8; HEADER], room: usize) -> Option<usize> {
    Header::of(header)?.within(room)
}

/// An answer that says `code` and nothing else.
pub(super) fn refusal(code: u32) -> [u8; HEADER] {
    let mut answer = [0; HEADER];
    let bytes = NO_SESSIONS
        .to_be_bytes()
        .into_iter()
        .chain((HEADER as u32).to_be_bytes())
        .chain(code.to_be_bytes());
    answer.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(tag: u16, size: u32, code: u32) -> Vec<u8> {
        [&tag.to_be_bytes()[..], &size.to_be_bytes(), &code.to_be_bytes(), &[0; 6]].concat()
    }

    #[test]
    fn only_commands_that_fit_go_on() {
        let get_random = 0x17b;
        assert_eq!(length(&command(NO_SESSIONS, 12, get_random)), Ok(12));
        assert_eq!(length(&command(SESSIONS, 16, get_random)), Ok(16), "all of the buffer");
        for size in [0, 9, 17, u32::MAX] {
            assert_eq!(length(&command(NO_SESSIONS, size, get_random)), Err(RC_COMMAND_SIZE));
        }
        assert_eq!(length(&[0x80, 1, 0]), Err(RC_COMMAND_SIZE));
        for tag in [0, 0x00c1, 0x8000, 0x8003] {
            assert_eq!(length(&command(tag, 12, get_random)), Err(RC_BAD_TAG));
        }
    }

    #[test]
    fn no_guest_chooses_a_locality() {
        assert_eq!(length(&command(NO_SESSIONS, 11, SWTPM_SET_LOCALITY)), Err(RC_COMMAND_CODE));
        // swtpm's prefix: 8, the locality, a size, and then a command.
        let prefixed =
            [&[0, 0, 0, 8, 4, 0, 0, 0, 12][..], &command(NO_SESSIONS, 12, 0x17b)].concat();
        assert_eq!(length(&prefixed), Err(RC_BAD_TAG));
    }

    #[test]
    fn answers_are_bounded() {
        let header =
            |size| -> [u8; HEADER] { command(NO_SESSIONS, size, 0)[..HEADER].try_into().unwrap() };
        assert_eq!(answer_length(&header(10), 64), Some(10));
        assert_eq!(answer_length(&header(64), 64), Some(64));
        for size in [0, 9, 65, u32::MAX] {
            assert_eq!(answer_length(&header(size), 64), None);
        }
        assert_eq!(refusal(RC_FAILURE), [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1]);
        assert_eq!(answer_length(&refusal(RC_BAD_TAG), HEADER), Some(HEADER));
    }
}
