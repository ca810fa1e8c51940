/** A typed event emitter: a listener that throws does not keep the others from hearing. */

/** Event names to the argument of their listeners. */
export class Emitter<Events extends object> {
  #listeners = new Map<keyof Events, Set<(data: never) => void>>();

  /** Adds a listener; returns what removes it. */
  on<Name extends keyof Events>(name: Name, listener: (data: Events[Name]) => void): () => void {
    const listeners = this.#listeners.get(name) ?? new Set();
    listeners.add(listener);
    this.#listeners.set(name, listeners);
    return () => listeners.delete(listener);
  }

  /** Tells all listeners of an event. */
  protected emit<Name extends keyof Events>(name: Name, data: Events[Name]): void {
    for (const listener of this.#listeners.get(name) ?? []) {
      try {
        (listener as (data: Events[Name]) => void)(data);
      } catch (error) {
        // Shown, but not thrown: it is the listener's bug, and playback must not stop for it.
        console.error(error);
      }
    }
  }
}
