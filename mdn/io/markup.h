// Text inside XML and HTML.
#pragma once

#include <string>
#include <string_view>

namespace mdn {

/// `text` with &, <, > and " as entities: right in an element and in a quoted attribute.
std::string escape_markup(std::string_view text);

}  // namespace mdn
