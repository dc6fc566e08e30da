export async function fuzz(_name: string, _seeds: readonly Uint8Array[], _parse: (input: Uint8Array) => unknown, _options?: { runs?: number }): Promise<void> {}
