#include "mdn/train/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "mdn/core/error.h"

namespace mdn::train {

AppendFile::AppendFile(std::filesystem::path path) : path_(std::move(path)) {
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  MDN_CHECK(fd_ >= 0, "{}: cannot be opened for appending: {}", path_.string(),
            std::strerror(errno));
}

AppendFile::~AppendFile() {
  ::close(fd_);
}

void AppendFile::append(std::span<const std::byte> record) {
  const off_t start = ::lseek(fd_, 0, SEEK_END);
  size_t written = 0;
  while (written < record.size()) {
    const ssize_t n = ::write(fd_, record.data() + written, record.size() - written);
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0) {
      const int reason = errno;
      const bool cut = start >= 0 && ::ftruncate(fd_, start) == 0;
      MDN_THROW("{}: wrote {} of {} bytes at {}{}: {}", path_.string(), written, record.size(),
                start, cut ? "" : " and could not remove them", std::strerror(reason));
    }
    written += static_cast<size_t>(n);
  }
}

void AppendFile::sync() {
  MDN_CHECK(::fdatasync(fd_) == 0, "{}: cannot be synced: {}", path_.string(),
            std::strerror(errno));
}

}  // namespace mdn::train
