/** What is checked of the panel's code: JupyterLab's usual rules, and that no text becomes HTML. */

import js from '@eslint/js';
import hooks from 'eslint-plugin-react-hooks';
import ts from 'typescript-eslint';

const SPOKEN = '/^(alt|aria-label|hint|label|note|placeholder|text|title)$/';
const HTML =
  'A text of somebody else would become HTML: give it to React as a child, or to textContent.';

const TRANS =
  'A text that people read goes through trans.__, for it to be translated.';

export default ts.config(
  { ignores: ['lib/', 'node_modules/'] },
  js.configs.recommended,
  {
    files: ['**/*.ts', '**/*.tsx'],
    extends: [
      ts.configs.recommendedTypeChecked,
      hooks.configs['recommended-latest']
    ],
    languageOptions: {
      parserOptions: {
        projectService: true,
        tsconfigRootDir: import.meta.dirname
      }
    },
    rules: {
      '@typescript-eslint/naming-convention': [
        'error',
        {
          selector: 'interface',
          format: ['PascalCase'],
          custom: { regex: '^I[A-Z]', match: true }
        }
      ],
      '@typescript-eslint/no-unused-vars': ['error', { args: 'none' }],
      '@typescript-eslint/no-use-before-define': 'off',
      // Lumino binds `this` by the second argument of connect.
      '@typescript-eslint/unbound-method': 'off',
      // An effect names what it follows, which is less than what it reads.
      'react-hooks/exhaustive-deps': 'off',
      curly: ['error', 'all'],
      eqeqeq: 'error',
      'prefer-arrow-callback': 'error',
      'no-restricted-syntax': [
        'error',
        {
          selector: "JSXAttribute[name.name='dangerouslySetInnerHTML']",
          message: HTML
        },
        {
          selector: 'MemberExpression[property.name=/^(inner|outer)HTML$/]',
          message: HTML
        },
        {
          selector: "CallExpression[callee.property.name='insertAdjacentHTML']",
          message: HTML
        },
        { selector: 'JSXText[value=/[A-Za-z]{2}/]', message: TRANS },
        {
          selector: `JSXAttribute[name.name=${SPOKEN}] Literal[value=/[A-Za-z]{2}/]:not(CallExpression *):not(BinaryExpression > *)`,
          message: TRANS
        },
        {
          selector:
            "CallExpression[callee.property.name=/^(__|_n)$/]:not([arguments.0.type='Literal'])",
          message: 'What is translated is found by its words: write them here.'
        },
        {
          selector:
            "NewExpression[callee.name='Function'], CallExpression[callee.name='eval']",
          message: 'No text becomes code.'
        }
      ]
    }
  }
);
