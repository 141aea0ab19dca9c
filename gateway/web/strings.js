// Every word of the page, in both languages. Keys are the same in both (tests/unit/test_page_files.py).
import { EN } from "./strings.en.js";
import { ZH } from "./strings.zh.js";

export const STRINGS = { en: EN, zh: ZH };
