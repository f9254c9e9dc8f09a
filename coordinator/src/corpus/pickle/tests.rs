//! Pickles that Python wrote are read, and pickles that nobody should open are refused.

use proptest::prelude::*;

use super::{writer::Plain, *};

/// Made with Python 3.11's `pickle.dumps(value, protocol)` for protocols 0 to 5, in hexadecimal, of
/// `{'Ses01': ['M', 2, -3, 300, 70000, 2**40, -2**40, 1.5, None, True, False, "It\x92s né — 😀", ''],
///   7: ('x', (), ('y', 'z'), ('p',), ('1', '2', '3', '4'))}`.
const VALUES: [&str; 6] = [
    "286470300a5653657330310a70310a286c70320a564d0a70330a6149320a61492d330a61493330300a614937303030300a614c313039393531313632373737364c0a614c2d313039393531313632373737364c0a6146312e350a614e614930310a614930300a615649749273206ee9205c7532303134205c5530303031663630300a70340a61560a70350a617349370a2856780a70360a28742856790a70370a567a0a70380a7470390a2856700a7031300a747031310a2856310a7031320a56320a7031330a56330a7031340a56340a7031350a747031360a747031370a732e",
    "7d7100285805000000536573303171015d71022858010000004d71034b024afdffffff4d2c014a701101004c313039393531313632373737364c0a4c2d313039393531313632373737364c0a473ff80000000000004e4930310a4930300a58120000004974c29273206ec3a920e2809420f09f9880710458000000007105654b072858010000007871062928580100000079710758010000007a710874710928580100000070710a74710b28580100000031710c580100000032710d580100000033710e580100000034710f747110747111752e",
    "80027d7100285805000000536573303171015d71022858010000004d71034b024afdffffff4d2c014a701101008a060000000000018a060000000000ff473ff80000000000004e888958120000004974c29273206ec3a920e2809420f09f9880710458000000007105654b0728580100000078710629580100000079710758010000007a7108867109580100000070710a85710b28580100000031710c580100000032710d580100000033710e580100000034710f747110747111752e",
    "80037d7100285805000000536573303171015d71022858010000004d71034b024afdffffff4d2c014a701101008a060000000000018a060000000000ff473ff80000000000004e888958120000004974c29273206ec3a920e2809420f09f9880710458000000007105654b0728580100000078710629580100000079710758010000007a7108867109580100000070710a85710b28580100000031710c580100000032710d580100000033710e580100000034710f747110747111752e",
    "80049585000000000000007d94288c055365733031945d94288c014d944b024afdffffff4d2c014a701101008a060000000000018a060000000000ff473ff80000000000004e88898c124974c29273206ec3a920e2809420f09f9880948c0094654b07288c017894298c0179948c017a9486948c0170948594288c0131948c0132948c0133948c01349474947494752e",
    "80059585000000000000007d94288c055365733031945d94288c014d944b024afdffffff4d2c014a701101008a060000000000018a060000000000ff473ff80000000000004e88898c124974c29273206ec3a920e2809420f09f9880948c0094654b07288c017894298c0179948c017a9486948c0170948594288c0131948c0132948c0133948c01349474947494752e",
];

/// The same for protocols 2 to 5, of `[{'b'}, frozenset(['c']), set()]`.
const SETS: [&str; 4] = [
    "80025d710028635f5f6275696c74696e5f5f0a7365740a71015d7102580100000062710361857104527105635f5f6275696c74696e5f5f0a66726f7a656e7365740a71065d710758010000006371086185710952710a68015d710b85710c52710d652e",
    "80035d710028636275696c74696e730a7365740a71015d7102580100000062710361857104527105636275696c74696e730a66726f7a656e7365740a71065d710758010000006371086185710952710a68015d710b85710c52710d652e",
    "80049516000000000000005d94288f94288c01629490288c01639491948f94652e",
    "80059516000000000000005d94288f94288c01629490288c01639491948f94652e",
];

fn bytes_of(hexadecimal: &str) -> Vec<u8> {
    let digit = |digit: u8| char::from(digit).to_digit(16).unwrap() as u8;
    hexadecimal.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// A value in letters; of shared values each time anew.
fn shown(item: Item) -> String {
    let all = |items: Vec<String>| items.join(" ");
    if let Some(pairs) = item.pairs() {
        return format!("{{{}}}", all(pairs.map(|(key, value)| format!("{}: {}", shown(key), shown(value))).collect()));
    }
    if let Some(items) = item.items() {
        return format!("{}[{}]", item.kind(), all(items.map(shown).collect()));
    }
    match (item.text(), item.value()) {
        (Some(text), _) => format!("'{text}'"),
        (None, Value::Int(number)) => number.to_string(),
        (None, Value::Float(number)) => format!("{number:?}"),
        (None, Value::Bool(bool)) => bool.to_string(),
        (None, _) => item.kind().to_owned(),
    }
}

#[test]
fn what_python_wrote_is_read_in_every_protocol() {
    let expected = "{'Ses01': a list['M' 2 -3 300 70000 1099511627776 -1099511627776 1.5 None true false \
        'It’s né — 😀' ''] 7: a tuple['x' a tuple[] a tuple['y' 'z'] a tuple['p'] a tuple['1' '2' '3' '4']]}";
    for (protocol, text) in VALUES.iter().enumerate() {
        let pickle = Pickle::read(&bytes_of(text)).unwrap_or_else(|e| panic!("protocol {protocol}: {e}"));
        assert_eq!(shown(pickle.root()), expected, "protocol {protocol}");
    }
    for text in SETS {
        assert_eq!(shown(Pickle::read(&bytes_of(text)).unwrap().root()), "a list[a set['b'] a set['c'] a set[]]");
    }
}

#[test]
fn strings_of_python_2_are_bytes_of_windows() {
    let cases: [&[u8]; 4] = [
        b"S'It\\x92s\\t\\'\\101\\''\np1\n.",
        b"U\x08It\x92s\t'A'.",
        b"T\x08\0\0\0It\x92s\t'A'.",
        b"S\"It\x92s\t'A'\"\n.",
    ];
    for case in cases {
        assert_eq!(shown(Pickle::read(case).unwrap().root()), "'It’s\t'A''");
    }
    assert_eq!(shown(Pickle::read(b"VIt\\u2019s \\ud83d\\ude00\\\n.").unwrap().root()), "'It’s 😀\\'");
}

#[test]
fn shared_and_circular_values_are_held_once() {
    // a = []; a.append(a), and a list of one text twice
    let circle = Pickle::read(b"]q\0h\0a.").unwrap();
    let inner = circle.root().items().unwrap().next().unwrap();
    assert_eq!((circle.values.len(), inner.place), (1, circle.root().place));
    let twice = Pickle::read(b"]q\0(\x8c\x02hi\x94h\x01e.").unwrap();
    assert_eq!((shown(twice.root()), twice.values.len()), ("a list['hi' 'hi']".into(), 2));
}

fn refusal(bytes: &[u8]) -> String {
    Pickle::read(bytes).expect_err("the pickle must not be read").to_string()
}

#[test]
fn whatever_names_or_calls_something_is_refused_by_its_name() {
    let cases: [(&[u8], &str, &str); 16] = [
        (b"cos\nsystem\n(S'echo hi'\ntR.", "byte 0: opcode GLOBAL", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04echo\x85R.", "byte 14: opcode STACK_GLOBAL", "os.system"),
        (b"(S'echo hi'\nios\nsystem\n.", "byte 12: opcode INST", "os.system"),
        (b"cbuiltins\neval\n.", "byte 0: opcode GLOBAL", "builtins.eval"),
        (b"cnumpy.core.multiarray\n_reconstruct\n.", "byte 0: opcode GLOBAL", "numpy.core.multiarray._reconstruct"),
        (b"c\x1b[2Jos\nsystem\n.", "byte 0: opcode GLOBAL", "\\u{1b}[2Jos.system"),
        (b"\x8c\x02os)R.", "byte 5: opcode REDUCE", "a str with a tuple"),
        (b"c__builtin__\nset\n)R.", "byte 18: opcode REDUCE", "the type of sets with a tuple"),
        (b"c__builtin__\nset\n(}tR.", "byte 20: opcode REDUCE", "the type of sets with a tuple"),
        (b"]}b.", "byte 2: opcode BUILD", "__setstate__ of a list"),
        (b"c__builtin__\nset\n)\x81.", "byte 18: opcode NEWOBJ", "the constructor of a class"),
        (b"(]o.", "byte 2: opcode OBJ", "the constructor of a class"),
        (b"))}\x92.", "byte 3: opcode NEWOBJ_EX", "the constructor of a class"),
        (b"Pname\n.", "byte 0: opcode PERSID", "under 'name'"),
        (b"NQ.", "byte 1: opcode BINPERSID", "under a value"),
        (b"\x83\x02\x01.", "byte 0: opcode EXT2", "number 258 of Python's registry"),
    ];
    for (bytes, opcode, calls) in cases {
        let error = refusal(bytes);
        assert!(error.starts_with(opcode), "{error}\nexpected {opcode}");
        assert!(error.contains(calls) && error.contains("a pickle with code in it"), "{error}\nexpected {calls}");
    }
}

#[test]
fn what_is_cut_short_or_too_long_is_refused_before_memory_is_taken() {
    let whole = bytes_of(VALUES[4]);
    for length in 0..whole.len() {
        refusal(&whole[..length]);
    }
    let cases: [(&[u8], &str); 14] = [
        (b"", "byte 0: ends without STOP"),
        (b"]", "byte 1: ends without STOP"),
        (b".", "byte 0: opcode STOP finds too little on the stack"),
        (b"\x8b\xff\xff\xff\x7f\x01.", "byte 0: opcode LONG4 announces 2147483647 bytes, but 2 are left"),
        (b"\x8a\x09\0\0\0\0\0\0\0\0\x01.", "byte 0: opcode LONG1: not a whole number of at most 64 bits"),
        (
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
            "byte 0: opcode BINUNICODE8 announces 18446744073709551615 bytes, but 1",
        ),
        (b"\x8e\0\0\0\0\0\x01\0\0.", "byte 0: opcode BINBYTES8 announces 1099511627776 bytes, but 1"),
        (b"\x95\xff\0\0\0\0\0\0\0N.", "byte 0: opcode FRAME announces 255 bytes, but 2"),
        (b"X\x01\0\0\0\xff.", "byte 0: opcode BINUNICODE: not UTF-8"),
        (b"Nr\xff\xff\xff\xff0j\xfe\xff\xff\xff.", "byte 7: opcode LONG_BINGET asks for memo 4294967294"),
        (b"\x80\x06N.", "byte 0: protocol 6: expected 0 to 5"),
        (b"N\xff.", "byte 1: 0xff is not an opcode"),
        (b"}(Nu.", "byte 3: opcode SETITEMS: not keys and values in pairs"),
        (b")Na.", "byte 2: opcode APPEND finds a tuple: expected a list"),
    ];
    for (bytes, expected) in cases {
        let error = refusal(bytes);
        assert!(error.starts_with(expected), "{error}\nexpected {expected}");
    }
}

#[test]
fn no_opcode_reaches_below_a_mark() {
    assert!(refusal(b"]N(a.").contains("APPEND finds too little"));
    assert!(refusal(b"NN(\x86.").contains("TUPLE2 finds too little"));
    assert_eq!(shown(Pickle::read(b"N(0\x85.").unwrap().root()), "a tuple[None]", "POP takes the mark");
}

#[test]
fn a_million_lists_in_each_other_take_no_call_stack() {
    let depth = 1_000_000;
    let deep = [vec![b']'; depth], vec![b'a'; depth - 1], vec![b'.']].concat();
    let pickle = Pickle::read(&deep).unwrap();
    let (mut item, mut found) = (pickle.root(), 1);
    while let Some(inner) = item.items().and_then(|mut items| items.next()) {
        (item, found) = (inner, found + 1);
    }
    assert_eq!(found, depth);
    drop(pickle);
}

#[test]
fn more_values_or_memos_than_a_corpus_has_are_refused() {
    let many = vec![b']'; VALUES_MAX + 1];
    assert!(refusal(&many).starts_with(&format!("byte {VALUES_MAX}: more than {VALUES_MAX} values")));
    let memos = [vec![b'N'], vec![0x94; VALUES_MAX + 1]].concat();
    assert!(refusal(&memos).contains("more than 8388608 values"), "{}", refusal(&memos));
}

#[test]
fn the_tests_own_writer_is_read() {
    let value = Plain::dict([("a", Plain::list([Plain::text("né"), Plain::Int(-7), Plain::Bytes(b"\x92".to_vec())]))]);
    assert_eq!(shown(Pickle::read(&value.pickled()).unwrap().root()), "{'a': a list['né' -7 '’']}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Pickle::read(&bytes);
    }

    #[test]
    fn opcodes_in_any_order_never_panic(
        picks in prop::collection::vec((0usize..OPCODES.len(), prop::collection::vec(any::<u8>(), 0..4)), 0..120),
    ) {
        let mut bytes = Vec::new();
        for (pick, operand) in picks {
            bytes.push(OPCODES[pick]);
            bytes.extend(operand.iter().map(|byte| byte % 8));
        }
        bytes.push(b'.');
        if let Ok(pickle) = Pickle::read(&bytes) {
            prop_assert!(pickle.values.len() <= bytes.len());
            prop_assert!((pickle.root as usize) < pickle.values.len());
        }
    }

    #[test]
    fn a_byte_that_flipped_never_panics(protocol in 0usize..6, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = bytes_of(VALUES[protocol]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = Pickle::read(&bytes);
    }
}

/// Every opcode of plain data, but for those that end it.
const OPCODES: &[u8] =
    b"(012FIJKLMNSTUVXad}eghjl]pqrst)uGBC\x80\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x94\x95\x96R";
