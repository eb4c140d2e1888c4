#include "mdn/io/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <csignal>
#include <random>

#include "tests/io/scratch.h"

namespace mdn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string random_text(size_t size) {
  std::mt19937 rng(static_cast<unsigned>(size));
  std::string text(size, '\0');
  for (char& c : text) {
    c = static_cast<char>(rng());
  }
  return text;
}

TEST(MappedFile, ShowsTheBytes) {
  const ScratchFolder folder;
  for (const size_t size : {0u, 1u, 4096u, 100001u}) {
    const std::string text = random_text(size);
    write_file_atomically(folder / "f", text);
    const MappedFile file(folder / "f");
    EXPECT_EQ(file.size(), size);
    EXPECT_EQ(as_text(file.bytes()), text);
    EXPECT_EQ(read_file(folder / "f"), text);
  }
}

TEST(MappedFile, MovesWithoutCopy) {
  const ScratchFolder folder;
  write_file_atomically(folder / "a", "first");
  write_file_atomically(folder / "b", "second");
  MappedFile a(folder / "a");
  const std::byte* data = a.data();
  MappedFile moved(std::move(a));
  EXPECT_EQ(moved.data(), data);
  EXPECT_EQ(a.data(), nullptr);  // NOLINT(bugprone-use-after-move): that is what is tested
  EXPECT_EQ(a.size(), 0u);
  moved = MappedFile(folder / "b");
  EXPECT_EQ(as_text(moved.bytes()), "second");
  EXPECT_EQ(moved.path(), folder / "b");
}

TEST(MappedFile, OutlivesReplacementAndRemoval) {
  const ScratchFolder folder;
  write_file_atomically(folder / "f", "old");
  const MappedFile file(folder / "f");
  write_file_atomically(folder / "f", "new content");
  EXPECT_EQ(as_text(file.bytes()), "old");
  std::filesystem::remove(folder / "f");
  EXPECT_EQ(as_text(file.bytes()), "old");
}

TEST(MappedFile, ErrorsNamePathAndReason) {
  const ScratchFolder folder;
  EXPECT_THAT(error_of([&] { MappedFile(folder / "none"); }),
              HasSubstr((folder / "none").string() + ": cannot open: No such file or directory"));
  EXPECT_THAT(error_of([&] { MappedFile{folder.path()}; }), HasSubstr("is a folder"));
  EXPECT_THAT(error_of([&] { read_file(folder / "none"); }), HasSubstr("No such file"));
  EXPECT_THAT(error_of([&] { read_file(folder.path()); }), HasSubstr("Is a directory"));
}

TEST(AtomicFile, KeepsTheOldFileUntilCommit) {
  const ScratchFolder folder;
  write_file_atomically(folder / "f", "old");
  AtomicFile file(folder / "f");
  file.write("new");
  EXPECT_EQ(read_file(folder / "f"), "old");
  file.commit();
  EXPECT_EQ(read_file(folder / "f"), "new");
  EXPECT_THAT(folder.names(), ElementsAre("f"));
  EXPECT_THAT(error_of([&] { file.write("more"); }), HasSubstr("after it was committed"));
  EXPECT_THAT(error_of([&] { file.commit(); }), HasSubstr("committed twice"));
}

TEST(AtomicFile, UncommittedLeavesNothing) {
  const ScratchFolder folder;
  {
    AtomicFile file(folder / "f");
    file.write(random_text(1 << 20));
    ASSERT_EQ(folder.names().size(), 1u);
    EXPECT_TRUE(is_temporary_name(folder.names().front())) << folder.names().front();
  }
  EXPECT_THAT(folder.names(), IsEmpty());
}

TEST(AtomicFile, WritesOfAllSizesKeepTheirOrder) {
  const ScratchFolder folder;
  std::string all;
  AtomicFile file(folder / "f");
  for (const size_t size : {1u, 0u, 100000u, 262143u, 1u, 262144u, 262145u, 3u, 1000000u, 7u}) {
    const std::string part = random_text(size);
    all += part;
    file.write(part);
    EXPECT_EQ(file.size(), all.size());
  }
  file.commit();
  EXPECT_EQ(read_file(folder / "f"), all);
}

TEST(AtomicFile, ErrorsNamePathAndReason) {
  const ScratchFolder folder;
  EXPECT_THAT(
      error_of([&] { AtomicFile(folder / "no/f"); }),
      HasSubstr((folder / "no/f").string() + ": cannot create a file in its folder: No such file"));
  EXPECT_THAT(error_of([] { AtomicFile("folder/"); }), HasSubstr("needs a name"));
  // A folder cannot be replaced by a file; the temporary must go.
  std::filesystem::create_directory(folder / "d");
  EXPECT_THAT(error_of([&] { write_file_atomically(folder / "d", "x"); }),
              HasSubstr("cannot be replaced"));
  EXPECT_THAT(folder.names(), ElementsAre("d"));
}

/// Runs `body` in a child process whose files may have at most `limit` bytes, as on a disk with
/// that much room: the write that passes it is cut short, the next one fails.
template <typename Body>
int run_with_file_limit(rlim_t limit, Body&& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit bounds{limit, limit};
    ::setrlimit(RLIMIT_FSIZE, &bounds);
    ::_exit(body());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(AtomicFile, FullDiskIsAnErrorAndLeavesTheOldFile) {
  const ScratchFolder folder;
  write_file_atomically(folder / "f", "old");
  for (const size_t part : {1000u, 300000u, 5000000u}) {  // buffered, and written through
    const int result = run_with_file_limit(1 << 20, [&] {
      const std::string text = random_text(part);
      try {
        AtomicFile file(folder / "f");
        for (size_t written = 0; written < 5000000; written += part) {
          file.write(text);
        }
        file.commit();
      } catch (const Error& error) {
        const std::string message = error.what();
        const bool named = message.find((folder / "f").string()) != std::string::npos &&
                           message.find("only 1048576 of at least") != std::string::npos &&
                           message.find("File too large") != std::string::npos;
        return named ? 7 : 1;
      }
      return 0;
    });
    EXPECT_EQ(result, 7) << part;
    EXPECT_EQ(read_file(folder / "f"), "old");
    EXPECT_THAT(folder.names(), ElementsAre("f"));
  }
}

TEST(AtomicFile, KilledWriterLeavesTheOldFileAndANamedTemporary) {
  const ScratchFolder folder;
  write_file_atomically(folder / "f", "old");
  const pid_t child = ::fork();
  if (child == 0) {
    AtomicFile file(folder / "f");
    file.write(random_text(1 << 20));
    ::raise(SIGKILL);
  }
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(read_file(folder / "f"), "old");
  ASSERT_EQ(folder.names().size(), 2u);
  EXPECT_TRUE(is_temporary_name(folder.names().front())) << folder.names().front();
}

TEST(AtomicFile, FollowsTheUmask) {
  const ScratchFolder folder;
  const mode_t before = ::umask(027);
  write_file_atomically(folder / "f", "x");
  ::umask(before);
  struct stat info = {};
  ASSERT_EQ(::stat((folder / "f").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
}

TEST(TemporaryName, IsRecognised) {
  EXPECT_TRUE(is_temporary_name(".model.safetensors.tmp.123.0"));
  EXPECT_TRUE(is_temporary_name(".a.tmp.b.tmp.1.2"));
  for (const char* name : {"", ".", "model.safetensors", ".tmp.1.2", "x.tmp.1.2", ".x.tmp.1",
                           ".x.tmp..2", ".x.tmp.1.", ".x.tmp.1.2a", ".x.tmp.1.2.3"}) {
    EXPECT_FALSE(is_temporary_name(name)) << name;
  }
}

TEST(ReadFile, ReadsFilesWithoutASize) {
  EXPECT_THAT(read_file("/proc/self/status"), HasSubstr("Pid:"));
}

}  // namespace
}  // namespace mdn
