//! From what a person does on an input device to its events (linux/input-event-codes.h).

use super::json::ActJson;
use beamline_vmm::config::InputKind;
use beamline_vmm::devices::virtio::input::Event;

/// Most events of one request: what waits for a guest at most, less one.
const MOST: usize = 1000;
const EV_KEY: u16 = 1;
const EV_REL: u16 = 2;
const EV_ABS: u16 = 3;
const REL_X: u16 = 0;
const REL_Y: u16 = 1;
const REL_WHEEL: u16 = 8;
/// What ends a report; the sender adds the last one.
const SYN: Event = Event { kind: 0, code: 0, value: 0 };
const LEFT_SHIFT: u16 = 42;
/// The largest position of the tablet, and of a stick.
const FULL: f64 = 32767.0;

/// Keys by name, in rows of codes that follow each other.
const KEYS: [(u16, &str); 9] = [
    (
        1,
        "esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace tab q w e r t y u i o p left-bracket right-bracket enter",
    ),
    (
        29,
        "left-ctrl a s d f g h j k l semicolon apostrophe grave left-shift backslash z x c v b n m comma dot",
    ),
    (
        53,
        "slash right-shift kp-multiply left-alt space caps-lock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 num-lock scroll-lock",
    ),
    (71, "kp-7 kp-8 kp-9 kp-minus kp-4 kp-5 kp-6 kp-plus kp-1 kp-2 kp-3 kp-0 kp-dot"),
    (86, "102nd f11 f12"),
    (
        96,
        "kp-enter right-ctrl kp-slash sysrq right-alt linefeed home up page-up left right end down page-down insert delete",
    ),
    (113, "mute volume-down volume-up power"),
    (119, "pause"),
    (125, "left-meta right-meta compose"),
];
/// Short names.
const ALIASES: [(&str, &str); 6] = [
    ("ctrl", "left-ctrl"),
    ("alt", "left-alt"),
    ("shift", "left-shift"),
    ("meta", "left-meta"),
    ("return", "enter"),
    ("escape", "esc"),
];
const BUTTONS: [(&str, u16); 5] =
    [("left", 0x110), ("right", 0x111), ("middle", 0x112), ("side", 0x113), ("extra", 0x114)];
const PAD: [(&str, u16); 11] = [
    ("south", 0x130),
    ("east", 0x131),
    ("north", 0x133),
    ("west", 0x134),
    ("tl", 0x136),
    ("tr", 0x137),
    ("select", 0x13a),
    ("start", 0x13b),
    ("mode", 0x13c),
    ("thumb-l", 0x13d),
    ("thumb-r", 0x13e),
];
/// Axes with their code, and what -1 (or 0, for triggers) and 1 are.
const AXES: [(&str, u16, f64, f64); 8] = [
    ("x", 0, -1.0, FULL),
    ("y", 1, -1.0, FULL),
    ("rx", 3, -1.0, FULL),
    ("ry", 4, -1.0, FULL),
    ("z", 2, 0.0, 255.0),
    ("rz", 5, 0.0, 255.0),
    ("hat-x", 16, -1.0, 1.0),
    ("hat-y", 17, -1.0, 1.0),
];
/// Characters of a US keyboard that are not letters: key, alone, with shift.
const SIGNS: [(u16, char, char); 23] = [
    (2, '1', '!'),
    (3, '2', '@'),
    (4, '3', '#'),
    (5, '4', '$'),
    (6, '5', '%'),
    (7, '6', '^'),
    (8, '7', '&'),
    (9, '8', '*'),
    (10, '9', '('),
    (11, '0', ')'),
    (12, '-', '_'),
    (13, '=', '+'),
    (15, '\t', '\t'),
    (26, '[', '{'),
    (27, ']', '}'),
    (28, '\n', '\n'),
    (39, ';', ':'),
    (40, '\'', '"'),
    (41, '`', '~'),
    (43, '\\', '|'),
    (51, ',', '<'),
    (52, '.', '>'),
    (53, '/', '?'),
];

/// What is wrong with an act, and what would be right.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Its place in the request.
    pub(super) place: String,
    pub(super) what: String,
    pub(super) mend: String,
}

/// The events of `acts` on a device of this kind, with a report's end between any two reports.
pub(super) fn events(kind: InputKind, acts: &[ActJson]) -> Result<Vec<Event>, Wrong> {
    let mut reports = Vec::new();
    for (index, act) in acts.iter().enumerate() {
        let wrong = |(what, mend): (String, &str)| Wrong {
            place: format!("do[{index}]"),
            what,
            mend: mend.to_owned(),
        };
        one(kind, act, &mut reports).map_err(wrong)?;
        if reports.len() > MOST {
            return Err(wrong((
                format!("these are more than {MOST} events"),
                "send them in several requests",
            )));
        }
    }
    if reports.is_empty() {
        let (what, mend) = ("nothing is to happen".to_owned(), "name at least one act".to_owned());
        return Err(Wrong { place: "do".to_owned(), what, mend });
    }
    // The sender ends the last report.
    reports.pop();
    Ok(reports)
}

fn one(kind: InputKind, act: &ActJson, to: &mut Vec<Event>) -> Result<(), (String, &'static str)> {
    let mut report = |events: &[Event]| {
        to.extend(events);
        to.push(SYN);
    };
    let key = |code, down: bool| Event { kind: EV_KEY, code, value: down.into() };
    match (kind, act) {
        (_, ActJson::Tap(keys)) => {
            let codes = chord(kind, keys)?;
            for code in &codes {
                report(&[key(*code, true)]);
            }
            for code in codes.iter().rev() {
                report(&[key(*code, false)]);
            }
        }
        (_, ActJson::Down(keys)) => {
            for code in chord(kind, keys)? {
                report(&[key(code, true)]);
            }
        }
        (_, ActJson::Up(keys)) => {
            for code in chord(kind, keys)?.into_iter().rev() {
                report(&[key(code, false)]);
            }
        }
        (InputKind::Keyboard, ActJson::Text(text)) => {
            if text.len() > MOST {
                return Err((format!("the text has {} bytes", text.len()), "send it in pieces"));
            }
            for c in text.chars() {
                let (code, shift) = character(c).ok_or_else(|| {
                    (
                        format!("no key of a US keyboard gives {c:?}"),
                        "use printable ASCII, tab and newline",
                    )
                })?;
                if shift {
                    report(&[key(LEFT_SHIFT, true)]);
                }
                report(&[key(code, true)]);
                report(&[key(code, false)]);
                if shift {
                    report(&[key(LEFT_SHIFT, false)]);
                }
            }
        }
        (InputKind::Mouse, ActJson::Move([x, y])) => report(&[
            Event { kind: EV_REL, code: REL_X, value: *x },
            Event { kind: EV_REL, code: REL_Y, value: *y },
        ]),
        (InputKind::Tablet, ActJson::Point(at)) => {
            if at.iter().any(|p| !(0.0..=1.0).contains(p)) {
                return Err((format!("{at:?} is outside"), "use two numbers from 0 to 1"));
            }
            let axis =
                |code, p: f64| Event { kind: EV_ABS, code, value: (p * FULL).round() as i32 };
            report(&[axis(0, at[0]), axis(1, at[1])]);
        }
        (InputKind::Mouse | InputKind::Tablet, ActJson::Wheel(steps)) => {
            report(&[Event { kind: EV_REL, code: REL_WHEEL, value: *steps }]);
        }
        (InputKind::Gamepad, ActJson::Axis { name, value }) => {
            let (_, code, min, scale) =
                AXES.into_iter().find(|a| a.0 == name).ok_or_else(|| {
                    (format!("{name:?} is no axis"), "use x, y, rx, ry, z, rz, hat-x or hat-y")
                })?;
            if !(min..=1.0).contains(value) {
                return Err((format!("{value} is outside"), "use -1 to 1, for triggers 0 to 1"));
            }
            report(&[Event { kind: EV_ABS, code, value: (value * scale).round() as i32 }]);
        }
        _ => {
            return Err((
                format!("a {} does not do that", kind.name()),
                "use tap, down and up; text on a keyboard, move on a mouse, point on a tablet, wheel on \
                 both, axis on a gamepad",
            ));
        }
    }
    Ok(())
}

/// The codes of `ctrl+alt+delete`.
fn chord(kind: InputKind, keys: &str) -> Result<Vec<u16>, (String, &'static str)> {
    let mend = match kind {
        InputKind::Keyboard => {
            "use names such as a, 1, enter, esc, space, f1, left, ctrl, alt, shift, meta, joined by +"
        }
        InputKind::Mouse => "use left, right, middle, side or extra",
        InputKind::Tablet => "use left, right or middle",
        InputKind::Gamepad => {
            "use south, east, north, west, tl, tr, select, start, mode, thumb-l or thumb-r"
        }
    };
    keys.split('+')
        .map(|name| {
            code(kind, name).ok_or_else(|| (format!("{name:?} is no key or button here"), mend))
        })
        .collect()
}

fn code(kind: InputKind, name: &str) -> Option<u16> {
    let find = |list: &[(&str, u16)]| list.iter().find(|(n, _)| *n == name).map(|(_, code)| *code);
    match kind {
        InputKind::Keyboard => {
            let alias = ALIASES.iter().find(|(short, _)| *short == name);
            let name = alias.map_or(name, |(_, long)| long);
            KEYS.iter().find_map(|(first, row)| {
                let at = row.split(' ').position(|n| n == name)?;
                Some(first + at as u16)
            })
        }
        InputKind::Mouse => find(&BUTTONS),
        InputKind::Tablet => find(&BUTTONS[..3]),
        InputKind::Gamepad => find(&PAD),
    }
}

/// The key that gives this character, and whether with shift.
fn character(c: char) -> Option<(u16, bool)> {
    if c == ' ' {
        return code(InputKind::Keyboard, "space").map(|code| (code, false));
    }
    if c.is_ascii_alphabetic() {
        let lower = c.to_ascii_lowercase().to_string();
        return code(InputKind::Keyboard, &lower).map(|code| (code, c.is_ascii_uppercase()));
    }
    SIGNS.iter().find_map(|(code, plain, shifted)| {
        (c == *plain).then_some((*code, false)).or((c == *shifted).then_some((*code, true)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(acts: &[ActJson]) -> Vec<(u16, i32)> {
        let events = events(InputKind::Keyboard, acts).unwrap();
        events.iter().filter(|e| e.kind == EV_KEY).map(|e| (e.code, e.value)).collect()
    }

    #[test]
    fn rows_of_keys_have_the_codes_of_linux() {
        for (name, is) in [
            ("esc", 1),
            ("enter", 28),
            ("left-ctrl", 29),
            ("a", 30),
            ("dot", 52),
            ("slash", 53),
            ("space", 57),
            ("f10", 68),
            ("scroll-lock", 70),
            ("kp-dot", 83),
            ("f12", 88),
            ("delete", 111),
            ("power", 116),
            ("left-meta", 125),
        ] {
            assert_eq!(code(InputKind::Keyboard, name), Some(is), "{name}");
        }
        assert_eq!(code(InputKind::Keyboard, ""), None);
    }

    #[test]
    fn every_printable_character_has_a_key() {
        for c in (' '..='~').chain(['\n', '\t']) {
            assert!(character(c).is_some(), "{c:?}");
        }
        assert_eq!(character('A'), Some((30, true)));
        assert_eq!(character('é'), None);
    }

    #[test]
    fn chords_go_down_in_order_and_up_in_reverse() {
        let tap = ActJson::Tap("ctrl+alt+delete".into());
        assert_eq!(keys(&[tap]), [(29, 1), (56, 1), (111, 1), (111, 0), (56, 0), (29, 0)]);
        assert_eq!(keys(&[ActJson::Text("A".into())]), [(42, 1), (30, 1), (30, 0), (42, 0)]);
    }

    #[test]
    fn reports_are_apart_and_the_last_is_left_open() {
        let acts = [ActJson::Move([1, -2]), ActJson::Wheel(-1)];
        let events = events(InputKind::Mouse, &acts).unwrap();
        let kinds: Vec<u16> = events.iter().map(|e| e.kind).collect();
        assert_eq!(kinds, [EV_REL, EV_REL, 0, EV_REL]);
        let point = super::events(InputKind::Tablet, &[ActJson::Point([0.0, 1.0])]).unwrap();
        assert_eq!(point.iter().map(|e| e.value).collect::<Vec<_>>(), [0, 32767]);
    }

    #[test]
    fn what_a_device_cannot_do_is_refused_with_its_place() {
        for (kind, act) in [
            (InputKind::Keyboard, ActJson::Move([0, 0])),
            (InputKind::Keyboard, ActJson::Tap("ctrl+".into())),
            (InputKind::Keyboard, ActJson::Text("ü".into())),
            (InputKind::Keyboard, ActJson::Text("x".repeat(300))),
            (InputKind::Mouse, ActJson::Tap("a".into())),
            (InputKind::Tablet, ActJson::Point([f64::NAN, 0.0])),
            (InputKind::Tablet, ActJson::Point([1.1, 0.0])),
            (InputKind::Gamepad, ActJson::Axis { name: "z".into(), value: -1.0 }),
            (InputKind::Gamepad, ActJson::Axis { name: "w".into(), value: 0.0 }),
        ] {
            let wrong = events(kind, std::slice::from_ref(&act)).unwrap_err();
            assert_eq!(wrong.place, "do[0]", "{act:?}");
        }
        assert_eq!(events(InputKind::Mouse, &[]).unwrap_err().place, "do");
    }
}
