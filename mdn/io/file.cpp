#include "mdn/io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "mdn/core/error.h"

namespace mdn {
namespace {

// Large enough that a header written in pieces is one system call, small enough to be free.
constexpr size_t kBufferBytes = size_t{1} << 18;
// One write(2) moves at most 2 GiB - 4 KiB; staying below keeps short writes a sign of trouble.
constexpr size_t kLargestWrite = size_t{1} << 30;

std::string errno_text(int code) {
  return std::generic_category().message(code);
}

/// A file descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

int open_retrying(const std::filesystem::path& path, int flags, mode_t mode = 0) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.parent_path();
  return folder.empty() ? std::filesystem::path(".") : folder;
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const Descriptor fd(open_retrying(path, O_RDONLY));
  MDN_CHECK(fd.get() >= 0, "{}: cannot open: {}", path.string(), errno_text(errno));
  struct stat info = {};
  MDN_CHECK(::fstat(fd.get(), &info) == 0, "{}: cannot read its size: {}", path.string(),
            errno_text(errno));
  MDN_CHECK(S_ISREG(info.st_mode), "{}: is {}, and only a regular file can be mapped",
            path.string(), S_ISDIR(info.st_mode) ? "a folder" : "no regular file");
  size_ = static_cast<size_t>(info.st_size);
  if (size_ == 0) {
    return;
  }
  void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd.get(), 0);
  MDN_CHECK(mapped != MAP_FAILED, "{}: cannot map its {} bytes: {}", path.string(), size_,
            errno_text(errno));
  data_ = static_cast<const std::byte*>(mapped);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  MappedFile moved(std::move(other));
  std::swap(path_, moved.path_);
  std::swap(data_, moved.data_);
  std::swap(size_, moved.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    ::munmap(const_cast<std::byte*>(data_), size_);
  }
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  MDN_CHECK(path_.has_filename(), "'{}': a file to write needs a name", path_.string());
  static std::atomic<uint64_t> counter{0};
  const std::string name = path_.filename().string();
  do {
    // A leftover of a killed process that had the same id is stepped over, not overwritten.
    temporary_ = folder_of(path_) / fmt::format(".{}.tmp.{}.{}", name, ::getpid(), counter++);
    fd_ = open_retrying(temporary_, O_WRONLY | O_CREAT | O_EXCL, 0666);
  } while (fd_ < 0 && errno == EEXIST);
  MDN_CHECK(fd_ >= 0, "{}: cannot create a file in its folder: {}", path_.string(),
            errno_text(errno));
  buffer_.reserve(kBufferBytes);
}

AtomicFile::~AtomicFile() {
  discard();
}

void AtomicFile::discard() noexcept {
  if (fd_ >= 0) {
    ::close(fd_);
    fd_ = -1;
    ::unlink(temporary_.c_str());
  }
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  MDN_CHECK(fd_ >= 0, "{}: written to after it was committed or had failed", path_.string());
  size_ += bytes.size();
  if (buffer_.size() + bytes.size() > kBufferBytes) {
    flush();
  }
  if (bytes.size() > kBufferBytes) {
    write_through(bytes);
  } else {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  }
}

void AtomicFile::flush() {
  write_through(buffer_);
  buffer_.clear();
}

void AtomicFile::write_through(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd_, bytes.data(), std::min(bytes.size(), kLargestWrite));
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      const std::string reason = written < 0 ? errno_text(errno) : "the system took no bytes";
      discard();
      MDN_THROW("{}: only {} of at least {} bytes could be written: {}; the file is left as it was",
                path_.string(), on_disk_, size_, reason);
    }
    on_disk_ += static_cast<uint64_t>(written);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void AtomicFile::commit() {
  MDN_CHECK(fd_ >= 0, "{}: committed twice, or after it had failed", path_.string());
  flush();
  // Delayed allocation reports a full disk or a failing one only here.
  if (::fsync(fd_) != 0) {
    const std::string reason = errno_text(errno);
    discard();
    MDN_THROW("{}: its {} bytes did not reach the disk: {}; the file is left as it was",
              path_.string(), size_, reason);
  }
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const std::string reason = errno_text(errno);
    discard();
    MDN_THROW("{}: cannot be replaced: {}", path_.string(), reason);
  }
  ::close(fd_);
  fd_ = -1;
  sync_folder(folder_of(path_));
}

void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

std::string read_file(const std::filesystem::path& path) {
  const Descriptor fd(open_retrying(path, O_RDONLY));
  MDN_CHECK(fd.get() >= 0, "{}: cannot open: {}", path.string(), errno_text(errno));
  struct stat info = {};
  MDN_CHECK(::fstat(fd.get(), &info) == 0, "{}: cannot read its size: {}", path.string(),
            errno_text(errno));
  std::string content;
  size_t filled = 0;
  // The size is a hint only: pipes and /proc have none. One byte more finds the end in one pass.
  content.resize(static_cast<size_t>(std::max<off_t>(info.st_size, 0)) + 1);
  while (true) {
    if (filled == content.size()) {
      content.resize(content.size() + std::max(content.size(), kBufferBytes));
    }
    const ssize_t got =
        ::read(fd.get(), content.data() + filled, std::min(content.size() - filled, kLargestWrite));
    if (got < 0 && errno == EINTR) {
      continue;
    }
    MDN_CHECK(got >= 0, "{}: cannot read past byte {}: {}", path.string(), filled,
              errno_text(errno));
    if (got == 0) {
      break;
    }
    filled += static_cast<size_t>(got);
  }
  content.resize(filled);
  return content;
}

void sync_folder(const std::filesystem::path& folder) {
  const Descriptor fd(open_retrying(folder, O_RDONLY | O_DIRECTORY));
  MDN_CHECK(fd.get() >= 0, "{}: cannot open the folder: {}", folder.string(), errno_text(errno));
  // Some file systems have no way to sync a folder and say EINVAL; they order renames themselves.
  MDN_CHECK(::fsync(fd.get()) == 0 || errno == EINVAL, "{}: cannot sync the folder: {}",
            folder.string(), errno_text(errno));
}

bool is_temporary_name(std::string_view name) {
  const size_t mark = name.rfind(".tmp.");
  if (mark == std::string_view::npos || mark < 2 || name.front() != '.') {
    return false;
  }
  const std::string_view tail = name.substr(mark + 5);
  const size_t dot = tail.find('.');
  const auto is_number = [](std::string_view s) {
    return !s.empty() && s.find_first_not_of("0123456789") == std::string_view::npos;
  };
  return dot != std::string_view::npos && is_number(tail.substr(0, dot)) &&
         is_number(tail.substr(dot + 1));
}

}  // namespace mdn
