/* SANITIZED: the address or the thread sanitizer is in this build, by gcc or clang. */
#ifndef LS_TESTS_UNIT_SANITIZED_H
#define LS_TESTS_UNIT_SANITIZED_H

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

#endif
