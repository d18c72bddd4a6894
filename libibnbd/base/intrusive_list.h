// SPDX-License-Identifier: Apache-2.0
// A doubly linked list threaded through its elements: no allocation, O(1) removal from the middle.
// An element derives from ListHook and is on at most one list at a time.
#pragma once

#include <cstddef>

#include "base/check.h"

namespace ibnbd {

class ListHook {
 public:
  ListHook() = default;
  ListHook(const ListHook&) = delete;
  ListHook& operator=(const ListHook&) = delete;
  ~ListHook() { DCHECK(!linked()); }
  [[nodiscard]] bool linked() const { return next_ != nullptr; }
  void Unlink() {
    DCHECK(linked());
    prev_->next_ = next_;
    next_->prev_ = prev_;
    prev_ = next_ = nullptr;
  }

 private:
  template <class T>
  friend class IntrusiveList;
  ListHook* prev_ = nullptr;
  ListHook* next_ = nullptr;
};

template <class T>
class IntrusiveList {
 public:
  IntrusiveList() { head_.prev_ = head_.next_ = &head_; }
  ~IntrusiveList() {
    DCHECK(empty());
    head_.prev_ = head_.next_ = nullptr;
  }
  IntrusiveList(const IntrusiveList&) = delete;
  IntrusiveList& operator=(const IntrusiveList&) = delete;

  [[nodiscard]] bool empty() const { return head_.next_ == &head_; }
  [[nodiscard]] T& front() {
    DCHECK(!empty());
    return static_cast<T&>(*head_.next_);
  }
  // The element behind `element`, which is on this list; null if it is the last.
  [[nodiscard]] T* Next(T& element) {
    ListHook* next = static_cast<ListHook&>(element).next_;
    DCHECK(next != nullptr);
    return next == &head_ ? nullptr : &static_cast<T&>(*next);
  }
  void PushBack(T& element) { InsertBefore(head_, element); }
  void PushFront(T& element) { InsertBefore(*head_.next_, element); }
  T& PopFront() {
    T& element = front();
    static_cast<ListHook&>(element).Unlink();
    return element;
  }
  // Moves all of `other` behind our last element.
  void Splice(IntrusiveList& other) {
    while (!other.empty()) PushBack(other.PopFront());
  }
  // Visits every element; `f` may unlink the one it is given.
  template <class F>
  void ForEach(F f) {
    for (ListHook* hook = head_.next_; hook != &head_;) {
      ListHook* next = hook->next_;
      f(static_cast<T&>(*hook));
      hook = next;
    }
  }
  [[nodiscard]] std::size_t CountSlowly() const {
    std::size_t count = 0;
    for (const ListHook* hook = head_.next_; hook != &head_; hook = hook->next_) ++count;
    return count;
  }

 private:
  static void InsertBefore(ListHook& place, T& element) {
    ListHook& hook = element;
    DCHECK(!hook.linked());
    hook.prev_ = place.prev_;
    hook.next_ = &place;
    place.prev_->next_ = &hook;
    place.prev_ = &hook;
  }
  ListHook head_;
};

}  // namespace ibnbd
