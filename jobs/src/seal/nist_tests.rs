//! The cipher is the one of NIST: known answers for AES-256-GCM with a 96-bit IV (CAVP, `gcmEncryptExtIV256.rsp`, a case of
//! each of some lengths), and with another tag none of them opens.
use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};

/// Key, IV, plaintext, AAD, ciphertext, tag.
const CASES: [[&str; 6]; 6] = [
    [
        "b52c505a37d78eda5dd34f20c22540ea1b58963cf8e5bf8ffa85f9f2492505b4",
        "516c33929df5a3284ff463d7",
        "",
        "",
        "",
        "bdc1ac884d332457a1d2664f168c76f0",
    ],
    [
        "31bdadd96698c204aa9ce1448ea94ae1fb4a9a0b3c9d773b51bb1822666b8f22",
        "0d18e06c7c725ac9e362e1ce",
        "2db5168e932556f8089a0622981d017d",
        "",
        "fa4362189661d163fcd6a56d8bf0405a",
        "d636ac1bbedd5cc3ee727dc2ab4a9489",
    ],
    [
        "92e11dcdaa866f5ce790fd24501f92509aacf4cb8b1339d50c9c1240935dd08b",
        "ac93a1a6145299bde902f21a",
        "2d71bcfa914e4ac045b2aa60955fad24",
        "1e0889016f67601c8ebea4943bc23ad6",
        "8995ae2e6df3dbf96fac7b7137bae67f",
        "eca5aa77d51d4a0a14d9c51e1da474ab",
    ],
    [
        "69b458f2644af9020463b40ee503cdf083d693815e2659051ae0d039e606a970",
        "8d1da8ab5f91ccd09205944b",
        "f3e0e09224256bf21a83a5de8d",
        "036ad5e5494ef817a8af2f5828784a4bfedd1653",
        "c0a62d77e6031bfdc6b13ae217",
        "a794a9aaee48cd92e47761bf1baff0af",
    ],
    [
        "463b412911767d57a0b33969e674ffe7845d313b88c6fe312f3d724be68e1fca",
        "611ce6f9a6880750de7da6cb",
        "e7d1dcf668e2876861940e012fe52a98dacbd78ab63c08842cc9801ea581682ad54af0c34d0d7f6f59e8ee0bf4900e0fd85042",
        "0a682fbc6192e1b47a5e0868787ffdafe5a50cead3575849990cdd2ea9b3597749403efb4a56684f0c6bde352d4aeec5",
        "8886e196010cb3849d9c1a182abe1eeab0a5f3ca423c3669a4a8703c0f146e8e956fb122e0d721b869d2b6fcd4216d7d4d3758",
        "2469cecd70fd98fec9264f71df1aee9a",
    ],
    [
        "26bf255bee60ef0f653769e7034db95b8c791752754e575c761059e9ee8dcf78",
        "cecd97ab07ce57c1612744f5",
        "96983917a036650763aca2b4e927d95ffc74339519ed40c4336dba91edfbf9ad",
        "afebbe9f260f8c118e52b84d8880a34622675faef334cdb41be9385b7d059b79c0f8a432d25f8b71e781b177fce4d4c57ac5734543e85d7513f96382ff4b2d4b95b2f1fdbaf9e78bbd1db13a7dd26e8a4ac83a3e8ab42d1d545f",
        "e34b1540a769f7913331d66796e00bdc3ee0f258cf244eb7663375cc5ad6c658",
        "3841f02beb7a7fca7e578922d0a2f80c",
    ],
];

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = (0..hex.len()).step_by(2).map(|at| &hex[at..at + 2]);
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect()
}

#[test]
fn the_cipher_gives_the_answers_of_nist() {
    for case in CASES {
        let [key, iv, plain, aad, text, tag] = case.map(bytes);
        let cipher = Aes256Gcm::new_from_slice(&key).expect("32 bytes");
        let nonce = iv.as_slice().try_into().expect("12 bytes");
        let mut sealed = [text, tag].concat();
        let payload = Payload { msg: &plain, aad: &aad };
        assert_eq!(cipher.encrypt(nonce, payload).as_deref(), Ok(&*sealed), "{}", case[0]);
        assert_eq!(cipher.decrypt(nonce, Payload { msg: &sealed, aad: &aad }), Ok(plain), "{}", case[0]);
        *sealed.last_mut().expect("a tag") ^= 1;
        assert!(cipher.decrypt(nonce, Payload { msg: &sealed, aad: &aad }).is_err(), "{}", case[0]);
    }
}
