//! See `reeve_jobs::seal::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    reeve_jobs::seal::fuzzing::rails(data);
});
