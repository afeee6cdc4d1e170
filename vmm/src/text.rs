//! Gives back the pages of code that only the start needed: what builds a guest is several times what runs it, and a
//! host has one process for each.
#![allow(unsafe_code)] // The places of loaded code come from the loader, and are given back by madvise(2).

use std::ffi::{c_int, c_void};

/// Unmaps all code of this process. What runs on is mapped again as it is used, from the files that it is in: nothing
/// is read anew while the kernel has those in memory.
pub fn forget_start() {
    // SAFETY: `forget` has the signature that is asked for, and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(forget), std::ptr::null_mut()) };
}

/// Gives back the code of one loaded file.
unsafe extern "C" fn forget(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _: *mut c_void,
) -> c_int {
    // SAFETY: the loader's own, valid for this call; the headers stay for as long as the file is loaded.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    let page = rustix::param::page_size() as u64;
    for header in headers {
        // Code that nobody may write is as its file has it; all else may have been changed, and would be lost.
        let is_code = header.p_type == libc::PT_LOAD
            && header.p_flags & libc::PF_X != 0
            && header.p_flags & libc::PF_W == 0;
        let start = (base + header.p_vaddr).next_multiple_of(page);
        let end = (base + header.p_vaddr + header.p_memsz) / page * page;
        if is_code && start < end {
            let len = (end - start) as usize;
            // SAFETY: mapped privately from a file, read-only, and not changed since: an access brings the same bytes
            // back. Where the kernel refuses, all stays as it is.
            unsafe { libc::madvise(start as *mut c_void, len, libc::MADV_DONTNEED) };
        }
    }
    0
}
